"""Observed values by name: KEY.NAME, what actions can be relative to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ObservationField


@dataclass(frozen=True)
class ObservedValue:
    """A key of the observation, and an index into its flattened values."""

    key: str
    index: int


def find_observed_value(entry: str, fields: Mapping[str, ObservationField], *, option: str) -> ObservedValue:
    """The value that ``entry`` names: KEY.NAME by the names of the fields, or KEY.INDEX.

    fields: those that are not images. option: the name of the option in messages. Raises ConfigurationError if it does not
    exist.
    """
    for key, field in fields.items():
        name = entry.removeprefix(f"{key}.")
        if name == entry or not (name in field.names or (name.isdigit() and int(name) < field.size)):
            continue
        return ObservedValue(key, field.names.index(name) if name in field.names else int(name))
    known = [f"{key}.{name}" for key, field in fields.items() for name in field.names or range(field.size)]
    near = difflib.get_close_matches(entry, known, n=3, cutoff=0.5) or known[:20]
    raise ConfigurationError(
        f"{option}: expected an observed value as KEY.NAME, or null, but got {entry!r}; there are "
        f"{', '.join(near)}{'' if len(near) == len(known) else ', …'}"
    )
