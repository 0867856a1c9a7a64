"""What resuming needs beside weights: the optimiser's memory as named tensors, never pickled, and the same data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import CheckpointError

PREFIX = "optimizer."
OF_DATA = ("observation_spec", "action_spec", "normalizer", "samples")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every state tensor, named ``optimizer.INDEX.NAME`` by the parameter's place."""
    state = optimizer.state_dict()["state"]
    return {f"{PREFIX}{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took; other tensors are passed over. Raises KeyError where one is missing.

    Moments get their parameter's memory format: fused kernels walk both as flat memory.
    """
    content = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(PREFIX):
            place, _, name = key.removeprefix(PREFIX).partition(".")
            state.setdefault(int(place), {})[name] = value
    if sorted(state) != list(range(len(parameters))):
        raise KeyError(f"the optimiser has {len(parameters)} parameters, but {len(state)} were saved")
    for index, parameter in enumerate(parameters):
        for name, value in state[index].items():
            if value.shape == parameter.shape:
                state[index][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    optimizer.load_state_dict({**content, "state": state})


def require_same_data(before: Mapping[str, Any], now: Mapping[str, Any], *, run: Path) -> None:
    """Raise CheckpointError where a checkpoint was trained on other data than are given now, naming what differs.

    before, now: the descriptions of a checkpoint and of a model, with the number of ``samples``; what only one of them has
    is not compared. Numbers may differ by 1e-5, as between processors.
    """
    both = [name for name in OF_DATA if name in before and name in now]
    if different := [name for name in both if not _is_close(before[name], now[name])]:
        counts = f" ({before['samples']} samples then, {now['samples']} now)" if "samples" in different else ""
        raise CheckpointError(
            f"{run} was trained on other data: {' and '.join(different)} differ{counts}; resume it with the data set it was "
            "started with, or start from its weights with training.init_from in another output_dir"
        )


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_is_close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-5, atol=1e-12, equal_nan=True))
    return bool(one == other)
