"""What resuming needs besides weights: the state of the optimizer as named tensors, never pickled, and the same data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import CheckpointError

PREFIX = "optimizer."
DATA_KEYS = ("observation_spec", "estimated_spec", "action_spec", "normalizer", "samples")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All state tensors, by the names ``optimizer.INDEX.NAME``, where INDEX is that of the parameter."""
    state = optimizer.state_dict()["state"]
    return {f"{PREFIX}{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what ``optimizer_tensors`` returned; other tensors are ignored. Raises KeyError if one is missing.

    Moments get the memory format of their parameter: fused kernels treat both as flat memory.
    """
    content = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(PREFIX):
            index, _, name = key.removeprefix(PREFIX).partition(".")
            state.setdefault(int(index), {})[name] = value
    if sorted(state) != list(range(len(parameters))):
        raise KeyError(f"the optimizer has {len(parameters)} parameters, but {len(state)} were saved")
    for number, parameter in enumerate(parameters):
        for name, value in state[number].items():
            if value.shape == parameter.shape:
                state[number][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({**content, "state": state})


def require_same_data(before: Mapping[str, Any], now: Mapping[str, Any], *, run: Path) -> None:
    """Raise CheckpointError if a checkpoint was trained on other data than are given now, naming what differs.

    before, now: the descriptions of a checkpoint and of a model, with the number of ``samples``; entries that only one of
    them has are not compared. Numbers may differ by a relative 1e-5, as between processors.
    """
    common = [name for name in DATA_KEYS if name in before and name in now]
    if different := [name for name in common if not _is_close(before[name], now[name])]:
        counts = f" ({before['samples']} samples before, {now['samples']} now)" if "samples" in different else ""
        raise CheckpointError(
            f"{run} was trained on other data: {' and '.join(different)} differ{counts}; resume it with the data set it was "
            "started with, or start from its weights with training.init_from in another output_dir"
        )


def _is_close(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_is_close(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_is_close(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-5, atol=1e-12, equal_nan=True))
    return bool(a == b)
