"""Clipping: a large gradient is scaled to the configured norm, a small one does not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.trainer import Trainer


class Nothing:
    """Data that is never asked for."""

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize(("length", "expected"), [(50.0, 2.0), (2.5, 2.0), (1.5, 1.5)])
def test_the_gradient_is_scaled_to_the_configured_norm(tmp_path: Path, length: float, expected: float) -> None:
    model = nn.Linear(3, 4)
    config = TrainingConfig(gradient_clip=2.0)
    trainer = Trainer(model, Nothing(), config, output_dir=tmp_path, accelerator=Accelerator(cpu=True))
    gradient = torch.randn(16, generator=torch.Generator().manual_seed(0))
    gradient *= length / gradient.norm()
    model.weight.grad, model.bias.grad = gradient[:12].view(4, 3).clone(), gradient[12:].clone()
    assert trainer.clip_gradients() == pytest.approx(length, rel=1e-5)
    clipped = torch.cat([model.weight.grad.flatten(), model.bias.grad])
    torch.testing.assert_close(clipped, gradient * expected / length, rtol=1e-4, atol=0)
    if length == expected:
        assert torch.equal(clipped, gradient)
