"""How long and how to train."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowchunk.datasets.errors import ConfigurationError

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
"""What the encoders of images, or everything without images, compute in; the name that accelerate has for it."""
MATMUL_PRECISIONS = ("highest", "high", "medium")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    batch_size: over all processes. warmup_steps: by default min(500, steps / 10). evaluate_every: by default a fifth of
    the steps. num_micro_batches: parts of a batch whose gradients are summed, for less memory. channels_last: memory format
    of convolutions. compile: use ``torch.compile``; cuda_graphs: on a GPU also launch all kernels at once, if there are one
    process and one micro-batch. prefetch: prepare the next batch in a thread (by default on all devices but the CPU).
    precision: a name in ``PRECISIONS``. matmul_precision: of products in float32, see
    ``torch.set_float32_matmul_precision``. Raises ConfigurationError for values out of range.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup_steps: int | None = None
    gradient_clip: float = 1.0
    ema_max_decay: float = 0.9999
    log_every: int = 100
    checkpoint_every: int = 1000
    evaluate_every: int | None = None
    num_micro_batches: int = 1
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    prefetch: bool | None = None
    precision: str = "fp32"
    matmul_precision: str = "highest"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "num_micro_batches"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"training.{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"training.{name}={getattr(self, name)} must be above 0")
        for name, lowest in (("weight_decay", 0), ("warmup_steps", 0), ("evaluate_every", 1)):
            if (value := getattr(self, name)) is not None and value < lowest:
                raise ConfigurationError(f"training.{name}={value} must be at least {lowest}")
        if self.matmul_precision not in MATMUL_PRECISIONS:
            raise ConfigurationError(
                f"training.matmul_precision={self.matmul_precision} must be highest, high or medium"
            )
        if self.precision not in PRECISIONS:
            raise ConfigurationError(f"training.precision={self.precision}: there are {', '.join(PRECISIONS)}")

    @property
    def evaluation_interval(self) -> int:
        return self.evaluate_every or max(1, math.ceil(self.steps / 5))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at the last step."""
        warmup = min(500, self.steps // 10) if self.warmup_steps is None else self.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
