"""Learning rates per part of a model: pretrained backbones are trained more slowly."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters, grouped by the factor of their learning rate, ``scale``.

    It is 1, except for children that a module's ``learning_rate_scales`` names (pretrained backbones: 0.1).
    """
    scale_of = {
        parameter: scale
        for module in model.modules()
        for child, scale in getattr(module, "learning_rate_scales", {}).items()
        for parameter in module.get_submodule(child).parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault(scale_of.get(parameter, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]
