"""What ``--help`` says is true: every option that it names exists, and every list of choices is complete."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from flowchunk.cli.domains import DATASETS, DOMAINS
from flowchunk.cli.main import COMMANDS
from flowchunk.cli.options import GROUPS, choices, read_options
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.diffusion.schedules import SCHEDULES
from flowchunk.policy.diffusion.time_densities import TIME_DENSITIES
from flowchunk.policy.encoders.observation import VISION
from flowchunk.policy.networks import NETWORKS

CONFIGS = {
    "train": ("train", "train_generative"),
    "collect": ("collect", "train"),  # what it records is trained on
    "data": ("convert", "edit", "inspect", "replay"),
    "compare": ("compare", "compare_runs"),
    "episodes-needed": ("episodes_needed",),
    "grid": ("grid", "train"),
    "demo": ("collect",),  # its only option is output_dir
}
"""The configurations whose options a command takes; by default the one of its name."""
TASKS = {
    "train": ["task=pusht_image"],
    "train_generative": ["task=images"],
    "collect": ["task=pickplace_state"],
    "convert": ["task=pusht_image"],
    "replay": ["task=pusht_image"],
}
"""A task with which a configuration has all of its options."""
NAMED = re.compile(r"(?<![\w.=$])([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)=")
LISTS = {
    "network": {*NETWORKS},
    "objective": {*objective_names()},
    "schedule": {*SCHEDULES},
    "policy.time_density": {*TIME_DENSITIES},
    "vision": {*VISION},
    "hardware": {*choices("hardware")} - {"none"},
    "dataset": {*DATASETS["toy2d"]},
    "task": {*choices("task")} - {*DOMAINS},
}


def help_of(command: str) -> str:
    return str(importlib.import_module(f"flowchunk.cli.{command.replace('-', '_')}").__doc__)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_a_help_names_exists(command: str) -> None:
    named = {*NAMED.findall(help_of(command))}
    assert named, "an expression that finds nothing proves nothing"
    for key in named:
        assert any(key in options_of(config) for config in CONFIGS.get(command, (command,))), (
            f"{key}= of {command} --help"
        )


@cache
def options_of(config: str) -> set[str]:
    """The dotted names of all options and sections, and of the groups of choices."""
    found = {*GROUPS} if config in TASKS else set()

    def collect(options: Mapping[str, Any], prefix: str = "") -> None:
        for key, value in options.items():
            found.add(prefix + key)
            if isinstance(value, Mapping):
                collect(value, f"{prefix}{key}.")

    collect(read_options(config, TASKS.get(config, ()), all_given=False))
    return found


@pytest.mark.parametrize("key", LISTS)
def test_lists_of_choices_are_complete(key: str) -> None:
    listed = re.search(rf"(?<![\w.]){re.escape(key)}=[^|=]*?(\w+(?:\s*\|\s*\w+)+)", help_of("train"))
    assert listed is not None
    assert {*re.split(r"\s*\|\s*", listed[1])} == LISTS[key]
