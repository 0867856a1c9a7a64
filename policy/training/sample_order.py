"""All randomness of training as a function of a seed and a step: a resumed run sees what an uninterrupted one sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class SampleOrder:
    """Which samples make the batch of a step: epoch after epoch of permutations drawn from (seed, epoch)."""

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """(batch_size,) indices of the samples of this step."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = positions // self.samples, positions % self.samples
        return torch.cat([self._permutation(int(e))[places[epochs == e]] for e in torch.unique(epochs)])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(self.samples, generator=seeded(self.seed, epoch, stream=1))
        return self._permutations[epoch]


def mixed_seed(seed: int, number: int, *, stream: int = 0) -> int:
    """A seed that is a function of a seed, a step or epoch, and a stream that keeps different uses apart."""
    mixed = np.random.SeedSequence([seed, number, stream]).generate_state(2)
    return int(mixed[0]) << 31 ^ int(mixed[1])


def seeded(seed: int, number: int, *, stream: int = 0) -> torch.Generator:
    """A generator of its own for each ``mixed_seed``."""
    return torch.Generator().manual_seed(mixed_seed(seed, number, stream=stream))
