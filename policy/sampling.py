"""How a trained model is sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from flowchunk.datasets.errors import ConfigurationError


@dataclass(frozen=True)
class SamplingOptions:
    """How a trained model is sampled; saved with it, though no weight depends on it.

    solver: its name in ``SOLVERS``; None for the objective's default. nfe: network evaluations; None for the model's default
    (chunk policies 4, generated data 16), or the only number that the objective admits. eta: of the ancestral solver, from
    0 (DDIM) to 1 (DDPM). guidance: scale of classifier-free guidance; above 1 samples are more typical of their class, at two
    network evaluations per step. noise_scale: factor of the starting noise; below 1 samples are less diverse and closer to
    the mean. prefix_method: how a chunk policy continues the old chunk, a name in ``PREFIX_METHODS``; None for ``trained``.
    Raises ConfigurationError for values out of range.
    """

    solver: str | None = None
    nfe: int | None = None
    eta: float = 1.0
    guidance: float = 1.0
    noise_scale: float = 1.0
    prefix_method: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ConfigurationError(f"eta={self.eta} must be from 0 to 1")
        if not 0 <= self.noise_scale < float("inf"):
            raise ConfigurationError(
                f"noise_scale={self.noise_scale} must be at least 0, and finite; 1 is the noise of training"
            )

    def with_given(self, **options: Any) -> Self:
        """These options, replaced by those of ``options`` that are not None."""
        return replace(self, **{name: value for name, value in options.items() if value is not None})
