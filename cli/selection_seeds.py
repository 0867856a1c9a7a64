"""Whether a policy is reported on episodes that chose its checkpoint, whose figures are too good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowchunk.envs.rollout import SELECTION_SEED

EPISODES_BEFORE_THEY_WERE_STORED = 50
OVERLAP = "seeds_overlap_selection"
"""The entry of ``eval.json``."""


def selection_seeds(training: Mapping[str, Any]) -> range:
    """The seeds of the episodes that chose a checkpoint, by what it says about its training; empty if none did.

    Older checkpoints do not say it: theirs are taken to be the defaults.
    """
    if training.get("env_id") is None:
        return range(0)
    default = {"seed": SELECTION_SEED, "episodes": EPISODES_BEFORE_THEY_WERE_STORED}
    evaluation = training.get("evaluation", default)
    return range(evaluation["seed"], evaluation["seed"] + evaluation["episodes"])


def overlaps_selection(training: Mapping[str, Any], seeds: Sequence[int]) -> bool:
    """Whether any of these seeds chose the checkpoint."""
    chosen = selection_seeds(training)
    return any(seed in chosen for seed in seeds)


def overlap_warning(name: str) -> str:
    """What is said of a figure that is measured on the episodes that chose its checkpoint."""
    return (
        f"{name}: its checkpoint was chosen on some of these seeds, so its figures are too good; report on others, such as "
        "the default ones"
    )
