"""How time and condition enter every network: an embedding, and adaptive layer norm with gates initialized to zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def geometric_frequencies(size: int, *, shortest: float = 4e-3, longest: float = 4.0) -> Tensor:
    """(size / 2,) angular frequencies of geometric periods, for ``sinusoidal_embedding``; size must be even."""
    return 2 * math.pi / (shortest * (longest / shortest) ** torch.linspace(0.0, 1.0, size // 2))


def sinusoidal_embedding(t: Tensor, frequencies: Tensor) -> Tensor:
    """Sines and cosines of t in [0, 1] with F frequencies, ``(*t.shape, 2 · F)``."""
    angles = t[..., None] * frequencies.to(t.dtype)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeAndCondition(nn.Module):
    """Embeds times and condition in a vector per sample or per token.

    forward(t (B,) or (B, H), condition (B, C), t_end like t or None) -> (B, width) or (B, H, width)
    """

    frequencies: Tensor
    held: tuple[Tensor, list[Tensor]] | None = None  # a condition that comes again, and its embedding once it is known

    def __init__(self, condition_size: int, width: int, *, time_features: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", geometric_frequencies(time_features), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * time_features, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Sequential(nn.Linear(condition_size, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, condition: Tensor, t_end: Tensor | None = None) -> Tensor:
        length = torch.zeros_like(t) if t_end is None else t_end - t
        features = sinusoidal_embedding(torch.stack([t, length], dim=-1), self.frequencies)
        embedded = self._embedded(condition)
        time = self.time(features.flatten(-2))
        return time + (embedded if t.ndim == 1 else embedded[:, None])

    def _embedded(self, condition: Tensor) -> Tensor:
        held = self.held
        if held is None or held[0] is not condition:
            embedded: Tensor = self.condition(condition)
            return embedded
        if not held[1]:
            held[1].append(self.condition(condition))
        return held[1][0]


@contextmanager
def embedded_once(network: nn.Module, condition: Tensor) -> Iterator[None]:
    """Let a network with an ``embedding`` embed this condition once for all evaluations in the block.

    Within it the condition must not change.
    """
    embedding = getattr(network, "embedding", None)
    if not isinstance(embedding, TimeAndCondition):
        yield
        return
    embedding.held = condition, []
    try:
        yield
    finally:
        embedding.held = None


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose shift and scale come from the condition, with gates for the branches that follow (DiT, 2212.09748).

    forward(x (B, …, width), c (B, …, width)) -> normalized x, and ``gates`` tensors that start at zero.
    """

    def __init__(self, width: int, *, gates: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), zero_initialized(nn.Linear(width, (2 + gates) * width)))
        self.gates = gates

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        shift, scale, *gates = self.modulation(c).chunk(2 + self.gates, dim=-1)
        return (self.norm(x) * (1 + scale) + shift, *gates)


def time_per_token(t: Tensor, horizon: int) -> Tensor:
    """(B, H) times, from times (B,) per sample or (B, H) per token."""
    return t if t.ndim == 2 else t[:, None].expand(-1, horizon)


def embedding_per_token(c: Tensor) -> Tensor:
    """An embedding (B, width) as (B, 1, width), the same for all tokens; (B, H, width) is returned unchanged."""
    return c if c.ndim == 3 else c[:, None]


def time_per_sample(t: Tensor | None) -> Tensor | None:
    """(B,) the time of the tokens that are not known yet: known ones are at 1, so it is the smallest."""
    return t if t is None or t.ndim == 1 else t.amin(dim=1)


def zero_initialized(layer: nn.Linear | nn.Conv1d) -> nn.Linear | nn.Conv1d:
    """The layer, with weight and bias set to zero in place."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
