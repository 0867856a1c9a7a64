"""The optimiser's memory as named tensors, so that it is kept in safetensors and not pickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

PREFIX = "optimizer."


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every state tensor, named ``optimizer.INDEX.NAME`` by the parameter's place."""
    state = optimizer.state_dict()["state"]
    return {f"{PREFIX}{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took; other tensors are passed over. Raises KeyError where one is missing."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(PREFIX):
            index, _, name = key.removeprefix(PREFIX).partition(".")
            state.setdefault(int(index), {})[name] = value
    content = optimizer.state_dict()
    expected = sum(len(group["params"]) for group in content["param_groups"])
    if sorted(state) != list(range(expected)):
        raise KeyError(f"the optimiser has {expected} parameters, but {len(state)} were saved")
    optimizer.load_state_dict({**content, "state": state})
