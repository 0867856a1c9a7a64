"""Training objectives by name: those of diffusion and flow matching, and baselines without a path.

An objective is a class with ``sample_noise``, ``loss`` and ``sample``. Those on a path have the name of their prediction;
the others are flow maps, regression and the minimal iterative policy. Chunk policies, images and points take any of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.objectives.direct import MinimalIterativePolicy, Regression
from flowchunk.policy.diffusion.objectives.flow_map import FlowMap
from flowchunk.policy.diffusion.objectives.objective import IntegratedObjective, Objective
from flowchunk.policy.diffusion.objectives.path_objective import PathObjective
from flowchunk.policy.diffusion.predictions import PREDICTIONS
from flowchunk.policy.diffusion.time_densities import time_density as make_time_density
from flowchunk.policy.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective", {"regression": Regression, "mip": MinimalIterativePolicy, "flow_map": FlowMap}
)
"""In addition, every name in ``PREDICTIONS`` is an objective on a path."""

RENAMED = {"ddpm": "noise_prediction", "x": "data_prediction", "kl": "posterior"}
"""Earlier names → today's; checkpoints with the earlier names are migrated."""


def objective_names() -> tuple[str, ...]:
    """All names that ``make_objective`` takes."""
    return (*PREDICTIONS, *OBJECTIVES)


def make_objective(
    name: str,
    *,
    schedule: str | None = None,
    time_density: str = "uniform",
    time_density_options: Mapping[str, float] | None = None,
    min_snr_gamma: float | None = None,
    clip_sample_range: float | None = None,
    wrapped: bool = False,
) -> Objective:
    """The objective of that name; for options that are None the objective has its own default.

    clip_sample_range: the largest absolute value of the normalized data, for predictions that clip. wrapped: the data are
    angles (radians). Raises ConfigurationError for unknown names and for options that do not fit together.
    """
    if name in OBJECTIVES:
        kind = OBJECTIVES[name]
    elif name in PREDICTIONS:
        kind = PathObjective
    else:
        if name in RENAMED:
            raise ConfigurationError(f"objective={name} was renamed; use objective={RENAMED[name]}")
        raise ConfigurationError(f"unknown objective {name!r}; there are {', '.join(objective_names())}")
    try:
        density = make_time_density(time_density, time_density_options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from error
    return kind.make(
        name,
        schedule=schedule,
        time_density=density,
        min_snr_gamma=min_snr_gamma,
        clip_sample_range=clip_sample_range,
        wrapped=wrapped,
    )


__all__ = ["OBJECTIVES", "IntegratedObjective", "Objective", "PathObjective", "make_objective", "objective_names"]
