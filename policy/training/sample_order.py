"""All randomness of training as a function of seed and step, so that a resumed run repeats an uninterrupted one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class SampleOrder:
    """Which samples are in the batch of a step: epochs, each a permutation that is a function of (seed, epoch).

    samples: their number. A batch may span two epochs.
    """

    def __init__(self, samples: int, batch_size: int, seed: int) -> None:
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self._permutations: dict[int, Tensor] = {}

    def indices(self, step: int) -> Tensor:
        """(batch_size,) indices of the samples of this step."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = positions // self.samples, positions % self.samples
        return torch.cat([self._permutation(int(e))[offsets[epochs == e]] for e in torch.unique(epochs)])

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations[epoch] = torch.randperm(
                self.samples, generator=seeded_generator(self.seed, epoch, stream=1)
            )
        return self._permutations[epoch]


def derive_seed(seed: int, number: int, *, stream: int = 0) -> int:
    """A seed from a seed, a number (of a step or an epoch), and a stream, which separates different uses."""
    mixed = np.random.SeedSequence([seed, number, stream]).generate_state(2)
    return int(mixed[0]) << 31 ^ int(mixed[1])


def seeded_generator(seed: int, number: int, *, stream: int = 0) -> torch.Generator:
    """A generator seeded with ``derive_seed``."""
    return torch.Generator().manual_seed(derive_seed(seed, number, stream=stream))
