"""The command that repeats a training, found from the options that its folder holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.options import read_options
from flowchunk.datasets.errors import ConfigurationError

PLAIN = re.compile(r"[A-Za-z_/][\w./:-]*")
RESERVED = {"true", "false", "null", "nan", "inf", "yes", "no", "on", "off"}
NEVER_REPEATED = ("output_dir", "training.resume")


def training_arguments(options: Mapping[str, Any]) -> list[str] | None:
    """Arguments of ``flowchunk train`` that give these options, without those that are defaults of the task.

    options: of ``schemas.TRAIN`` or ``TRAIN_GENERATIVE``, as ``config.yaml`` holds them. output_dir is left out. None if no
    arguments give them, as with a file of an older version.
    """
    try:
        config = "train_generative" if options["task"]["name"] in DOMAINS else "train"
        chosen = _chosen(options)
        defaults = read_options(config, [*chosen, *_placeholders(config)], all_given=False)
        found = [*chosen, *(f"{key}={_text(value)}" for key, value in _changes(defaults, options))]
        is_same = not [*_changes(read_options(config, found), options)]
    except (ConfigurationError, KeyError, TypeError, AttributeError):
        return None
    return found if is_same else None


def _chosen(options: Mapping[str, Any]) -> list[str]:
    """The choices of groups, which decide about the other defaults."""
    groups = ["task", "network"]
    groups += ["vision"] if "vision" in options else []
    groups += ["dataset"] if "name" in options["dataset"] else []
    return [f"{group}={options[group]['name'] or 'none'}" for group in groups]


def _placeholders(config: str) -> list[str]:
    return ["dataset.path=-"] if config == "train" else []


def _changes(defaults: Mapping[str, Any], options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values of options that differ from the defaults."""
    for name, value in options.items():
        key, default = f"{prefix}{name}", defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from _changes(default, value, f"{key}.")
        elif key not in NEVER_REPEATED and (name not in defaults or value != default):
            yield key, value


def _text(value: Any) -> str:
    """A value in the grammar of overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str) and (not PLAIN.fullmatch(value) or value.lower() in RESERVED):
        escaped = value.replace("'", "\\'")
        return f"'{escaped}'"
    return str(value)
