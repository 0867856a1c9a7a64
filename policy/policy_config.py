"""What a chunk policy is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.generative_model import ModelConfig
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.real_time_chunking import objection


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ModelConfig):
    """What a chunk policy is made of; saved with it.

    observation_steps: To, the latest observations that it is given. horizon: H, the number of predicted actions.
    n_action_steps: how many of them are executed before the next prediction. prefix_max: the longest prefix of already
    committed actions in training; 0 for none. mask_padding: exclude the padding after an episode's end, where the last
    action is held, from the loss. relative_to: for each action dimension the observed value, as KEY.NAME, that the network
    predicts it relative to, or None; the policy itself takes and returns absolute actions. frame: of an observed object, in
    which the network sees and acts, see ``PlanarFrame``; None for the world. estimated: keys that the demonstrations hold but
    the robot does not observe: the policy learns to estimate them from its images, which serve nothing else then, and sees
    only the latest estimate, see ``ValueEstimator``. estimate_every: only every k-th row of a training batch learns to
    estimate, because that is much more work than to learn a chunk from what was recorded. vision, vision_options: the image
    encoder, see ``ObservationEncoder``. num_noise_samples: how many samples of noise and time each observation is trained
    with; by default 4 if images are encoded for all of them, which is expensive, otherwise 1. For the others see
    ``ModelConfig``.
    Raises ConfigurationError for values out of range and options that do not fit together.
    """

    time_density: str = "beta"
    observation_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    prefix_max: int = 0
    mask_padding: bool = False
    relative_to: Sequence[str | None] | None = None
    frame: Mapping[str, Any] | None = None
    estimated: Sequence[str] = ()
    estimate_every: int = 1
    vision: str | None = None
    vision_options: Mapping[str, Any] = field(default_factory=dict)
    num_noise_samples: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "estimated", tuple(self.estimated))  # also if read as a list
        if self.network not in NETWORKS:
            raise ConfigurationError(f"unknown network {self.network!r}; there are {', '.join(NETWORKS)}")
        objective = self.make_objective()
        if self.observation_steps < 1 or not 1 <= self.n_action_steps <= self.horizon:
            raise ConfigurationError(
                f"observation_steps={self.observation_steps}, horizon={self.horizon}, "
                f"n_action_steps={self.n_action_steps}: expected 1 <= n_action_steps <= horizon and 1 <= observation_steps"
            )
        if not 0 <= self.prefix_max < self.horizon:
            raise ConfigurationError(f"prefix_max={self.prefix_max} must be from 0 to horizon - 1 = {self.horizon - 1}")
        if self.estimate_every < 1:
            raise ConfigurationError(f"estimate_every={self.estimate_every} must be at least 1")
        if self.estimate_every > 1 and not self.estimated:
            raise ConfigurationError(f"estimate_every={self.estimate_every}: nothing is estimated; leave it out")
        if self.num_noise_samples is not None and self.num_noise_samples < 1:
            raise ConfigurationError(f"num_noise_samples={self.num_noise_samples} must be at least 1")
        if self.prefix_max and not objective.takes_prefix:
            raise ConfigurationError(f"prefix_max={self.prefix_max}: objective={self.objective} cannot take a prefix")
        method = self.sampling.prefix_method
        if method is not None and (reason := objection(method, objective, self.sampling)) is not None:
            raise ConfigurationError(f"prefix_method={method} {reason}")
        solver = objective.solver_name(self.sampling)
        if self.prefix_max and solver is not None and not SOLVERS[solver].keeps_prefix:
            raise ConfigurationError(
                f"prefix_max={self.prefix_max}: solver={solver} cannot keep a prefix; use ddim or ancestral"
            )

    @property
    def noise_samples_per_observation(self) -> int:
        """``num_noise_samples`` or its default."""
        return self.num_noise_samples or (1 if self.vision is None or self.estimated else 4)
