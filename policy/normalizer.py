"""Normalization of observations and actions: fitted once, stored with the policy, never guessed.

Each key has a mode: ``min_max`` (to [-1, 1]), ``gaussian`` (mean 0, standard deviation 1), ``quantile`` (the 1st and
99th percentile to ±1) or ``identity``. A constant dimension is shifted to 0 and not scaled; samples
keep it constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flowchunk.datasets.errors import ConfigurationError, SpecMismatchError
from flowchunk.datasets.shape_repr import shape_repr

Mode = Literal["min_max", "gaussian", "quantile", "identity"]
MODES: tuple[Mode, ...] = ("min_max", "gaussian", "quantile", "identity")
RESERVOIR_ROWS = 200_000


class RunningStatistics:
    """Minimum, maximum, mean, standard deviation and quantiles of rows (N, …) in one pass, in float64.

    Quantiles are exact up to 200,000 rows, beyond that from a uniform sample of 200,000 (Vitter's algorithm R, with this
    seed). keep_sample: False if no quantiles are needed; then no rows are kept in memory.
    """

    def __init__(self, *, seed: int = 0, keep_sample: bool = True) -> None:
        self.count = 0
        self._keep_sample = keep_sample
        self._random = np.random.default_rng(seed)
        self._reservoir = np.empty((0,))

    def update(self, rows: np.ndarray) -> None:
        """Add rows (N, …) of finite numbers."""
        rows = np.asarray(rows, dtype=np.float64)
        if not len(rows):
            return
        if self.count == 0:
            self.low, self.high = np.full(rows.shape[1:], np.inf), np.full(rows.shape[1:], -np.inf)
            self.mean, self._squares = np.zeros(rows.shape[1:]), np.zeros(rows.shape[1:])
            self._reservoir = np.empty((0, *rows.shape[1:]))
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        shift, total = rows.mean(0) - self.mean, self.count + len(rows)
        self._squares += rows.var(0) * len(rows) + shift**2 * self.count * len(rows) / total  # Chan et al. 1979
        self.mean += shift * len(rows) / total
        if self._keep_sample:
            self._sample(rows)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each dimension."""
        return np.sqrt(self._squares / self.count)

    def quantile(self, q: float) -> np.ndarray:
        """The q-quantile of each dimension."""
        return np.quantile(self._reservoir, q, axis=0)

    def _sample(self, rows: np.ndarray) -> None:
        room = RESERVOIR_ROWS - len(self._reservoir)
        self._reservoir = np.concatenate([self._reservoir, rows[:room]]) if room > 0 else self._reservoir
        rest = rows[max(room, 0) :]
        counts = self.count + max(room, 0) + np.arange(1, len(rest) + 1)  # of rows up to each
        index = self._random.integers(0, counts)
        is_kept = index < RESERVOIR_ROWS
        self._reservoir[index[is_kept]] = rest[is_kept]


@dataclass(frozen=True, repr=False)
class Scaling:
    """The map ``(x - offset) · scale`` of a key, and the range of the training data; arrays of the shape of one value."""

    mode: Mode
    offset: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __repr__(self) -> str:
        return shape_repr(self)

    @classmethod
    def fit(cls, mode: Mode, blocks: Iterable[np.ndarray], *, identity: tuple[int, ...] = ()) -> Scaling:
        """Fit to blocks (N, …) in one pass.

        identity: flattened indices of dimensions that are not normalized (angles that wrap). Raises ConfigurationError for an
        unknown mode.
        """
        if mode not in MODES:
            raise ConfigurationError(f"unknown normalizer mode {mode!r}; there are {', '.join(MODES)}")
        statistics = RunningStatistics(keep_sample=mode == "quantile")
        for block in blocks:
            statistics.update(block)
        low, high = statistics.low, statistics.high
        if mode == "gaussian":
            center, half_range = statistics.mean, statistics.std
        else:
            ends = (statistics.quantile(0.01), statistics.quantile(0.99)) if mode == "quantile" else (low, high)
            center, half_range = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
        offset, scale = center.copy(), 1.0 / np.where(_is_constant(center, half_range), 1.0, half_range)
        unchanged = slice(None) if mode == "identity" else list(identity)
        offset.reshape(-1)[unchanged], scale.reshape(-1)[unchanged] = 0.0, 1.0
        return cls(mode, offset, scale, low, high)

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` reads."""
        arrays = {name: getattr(self, name).tolist() for name in ("offset", "scale", "low", "high")}
        return {"mode": self.mode, **arrays}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scaling:
        """The scaling that ``to_json`` described."""
        return cls(value["mode"], *(np.asarray(value[name]) for name in ("offset", "scale", "low", "high")))


class Normalizer(nn.Module):
    """The scalings of all keys of a policy. Their tensors move with the policy, but are no part of its state dictionary."""

    def __init__(self, scalings: Mapping[str, Scaling]) -> None:
        super().__init__()
        self.scalings = dict(scalings)
        for key, scaling in self.scalings.items():
            for name in ("offset", "scale", "low", "high"):
                values = torch.as_tensor(getattr(scaling, name), dtype=torch.float32)
                self.register_buffer(_buffer(key, name), values, persistent=False)
            middle, half_range = (scaling.low + scaling.high) / 2, (scaling.high - scaling.low) / 2
            is_constant = torch.as_tensor(_is_constant(middle, half_range) & (scaling.mode != "identity"))
            self.register_buffer(_buffer(key, "is_constant"), is_constant, persistent=False)

    def __repr__(self) -> str:
        return f"Normalizer({self.scalings})"

    def normalize(self, key: str, values: Tensor) -> Tensor:
        """Values (…, *shape) in physical units, normalized. Raises SpecMismatchError for a key that was not fitted."""
        return (values - self._tensor(key, "offset")) * self._tensor(key, "scale")

    def denormalize(self, key: str, values: Tensor) -> Tensor:
        """The inverse of ``normalize``."""
        return values / self._tensor(key, "scale") + self._tensor(key, "offset")

    def with_constants(self, key: str, values: Tensor) -> Tensor:
        """Values (…, *shape) in physical units, but those that never changed in the training data as they were there.

        A constant is not scaled, so that a sample of it would be noise of a size that depends on its unit.
        """
        return torch.where(self._tensor(key, "is_constant"), self._tensor(key, "low"), values)

    def out_of_range(self, key: str, values: Tensor, *, tolerance: float = 1e-3, wraps: tuple[int, ...] = ()) -> float:
        """The fraction of values (…, *shape), in physical units, that are outside the range of the training data.

        tolerance: added at both ends, as a fraction of the range. wraps: flattened indices of angles that wrap, which are
        never outside. Values that are not finite always are.
        """
        low, high = self._tensor(key, "low"), self._tensor(key, "high")
        slack = tolerance * (high - low) + 1e-6
        is_outside = (values < low - slack) | (values > high + slack)
        if wraps:
            is_outside.flatten(values.ndim - low.ndim)[..., list(wraps)] = False
        return float((is_outside | ~values.isfinite()).float().mean())

    def max_abs(self, key: str) -> float:
        """The largest absolute value of the normalized training data."""
        ends = [self.normalize(key, self._tensor(key, name)).abs().max() for name in ("low", "high")]
        return float(max(ends))

    def with_scaling(self, key: str, scaling: Scaling) -> Normalizer:
        """The same normalizer with another scaling for ``key``."""
        return Normalizer({**self.scalings, key: scaling})

    def to_json(self) -> dict[str, Any]:
        """A value that ``json.dumps`` accepts and ``from_json`` reads."""
        return {key: scaling.to_json() for key, scaling in self.scalings.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Normalizer:
        """The normalizer that ``to_json`` described."""
        return cls({key: Scaling.from_json(scaling) for key, scaling in value.items()})

    def _tensor(self, key: str, name: str) -> Tensor:
        if key not in self.scalings:
            raise SpecMismatchError(f"the normalizer was not fitted to {key!r}, only to {sorted(self.scalings)}")
        return self.get_buffer(_buffer(key, name))


def _is_constant(center: np.ndarray, half_range: np.ndarray) -> np.ndarray:
    return np.asarray(half_range <= 1e-6 * np.maximum(1.0, np.abs(center)))


def _buffer(key: str, name: str) -> str:
    return f"{key.replace('.', '/')}_{name}".replace(".", "/")
