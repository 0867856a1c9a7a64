"""What callers give a chunk policy, as tensors: observations and the actions of the old chunk, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from flowchunk.datasets.errors import SpecMismatchError
from flowchunk.datasets.specs import ObservationSpec


def observation_tensors(
    observation: Mapping[str, np.ndarray], spec: ObservationSpec, *, steps: int, device: torch.device
) -> dict[str, Tensor]:
    """Observations {key: (B, steps, …)} as tensors on the device; other keys are ignored.

    Raises SpecMismatchError if a key is missing, has another shape or type, or the batch sizes differ.
    """
    fields = spec.fields
    if missing := fields.keys() - observation.keys():
        raise SpecMismatchError(
            f"the policy needs the observations {sorted(fields)}, but {sorted(missing)} are missing"
        )
    tensors, batches = {}, set()
    for key, field in fields.items():
        # A copy, because torch tensors must be writable.
        value = np.array(observation[key], dtype=None if field.is_image else np.float32)
        if value.shape[1:] != (steps, *field.shape):
            raise SpecMismatchError(
                f"observation {key!r} must be (B, {steps}, {', '.join(map(str, field.shape))}), "
                f"but is {value.shape}: batch first, then the latest {steps} steps"
                + (", channels last" if field.is_image else "")
            )
        if field.is_image and value.dtype != np.uint8:
            raise SpecMismatchError(
                f"observation {key!r} is an image and must be uint8 from 0 to 255, but is {value.dtype} from "
                f"{value.min():g} to {value.max():g}; multiply images in [0, 1] by 255"
            )
        batches.add(len(value))
        tensors[key] = torch.as_tensor(value, device=device)
    if len(batches) != 1:
        raise SpecMismatchError(f"observations differ in batch size: {sorted(batches)}")
    return tensors


def require_finite(tensors: Mapping[str, Tensor], spec: ObservationSpec) -> None:
    """Raise SpecMismatchError if an observation that is no image has values that are not finite."""
    for key in spec.values:
        if not tensors[key].isfinite().all():
            raise SpecMismatchError(
                f"observation {key!r} has values that are not finite (NaN or infinite), so there is no action for it; check "
                "the sensor, or hold still"
            )


def action_tensor(name: str, actions: np.ndarray | None, *, batch: int, size: int, device: torch.device) -> Tensor:
    """Actions (B, n, D) of the old chunk as a tensor on the device; (B, 0, D) for None.

    name: of the argument, for errors. Raises SpecMismatchError for another shape and for values that are not finite.
    """
    if actions is None:
        return torch.empty(batch, 0, size, device=device)
    if actions.ndim != 3 or (len(actions), actions.shape[2]) != (batch, size):
        length = {"prefix": "d", "tail": "m"}[name]
        raise SpecMismatchError(f"{name} must be ({batch}, {length}, {size}), but is {actions.shape}")
    if not np.isfinite(actions).all():
        which = {"prefix": "committed", "tail": "planned"}[name]
        raise SpecMismatchError(
            f"{name} has values that are not finite (NaN or infinite); give the {which} actions of the old chunk"
        )
    return torch.tensor(actions, dtype=torch.float32, device=device)
