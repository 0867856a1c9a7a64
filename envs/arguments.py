"""Checks of what users pass to an environment; each error names the argument, what was expected and what was got."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flowchunk.datasets.errors import ConfigurationError, FlowchunkError


def require_one_of(argument: str, value: object, choices: Iterable[object]) -> None:
    """Raise ConfigurationError unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        raise ConfigurationError(f"{argument}: expected one of {choices}, got {value!r}; choose one of these")


def finite_numbers(value: object, names: Sequence[str], argument: str, error: type[FlowchunkError]) -> np.ndarray:
    """``value`` as float64 (N,), one finite number for each of the N names. Raises ``error`` otherwise."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (len(names),) or not np.isfinite(numbers).all():
        raise error(
            f"{argument}: expected {len(names)} finite numbers ({', '.join(names)}), got {value!r}; "
            "check its shape and whether it contains NaN or infinity"
        )
    return numbers
