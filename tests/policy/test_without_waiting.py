"""Training steps never wait for a GPU, tested without one: fake CUDA tensors have shapes and devices, but no values.

Asking one for its value, which on a GPU would wait for all that was queued before, is an error here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.training.sample_order import seeded_generator
from flowchunk.policy.training.trainer import Trainer
from tests.policy.test_image_policy import CONFIG, Samples, make_policy

pytestmark = pytest.mark.filterwarnings(
    "ignore:Accessing the data pointer of FakeTensor is deprecated:UserWarning"  # by torch's own copying
)

EVERYTHING: dict[str, Any] = {
    "plain": {},
    "prefix, mask": {"prefix_max": 2, "mask_padding": True},
    "relative": {"relative_to": ["hand.0", None]},
    "dit": {"network": "dit", "network_options": {"width": 16, "blocks": 1, "heads": 2}},
    "mixer": {"network": "mixer", "network_options": {"width": 16, "blocks": 1}},
    "unet1d": {"network": "unet1d", "network_options": {"channels": [8, 16]}},
    "jitter": {"vision_options": {"widths": [8, 8], "keypoints": 3, "color_jitter": 0.2}},
    **{name: {"objective": name} for name in objective_names() if name != "flow"},
}


def trainer_on_a_gpu(policy: ChunkPolicy, folder: Path, **changes: Any) -> Trainer:
    """As accelerate sets it up for a GPU, except for the gradients, which autograd computes only on real ones."""

    def backward(loss: torch.Tensor) -> None:
        assert loss.device.type == "cuda"
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)

    accelerator: Any = SimpleNamespace(
        device=torch.device("cuda"),
        num_processes=1,
        process_index=0,
        is_main_process=True,
        prepare=lambda module, optimizer: (module, optimizer),
        reduce=lambda tensor, _: tensor,
        backward=backward,
    )
    return Trainer(policy, Samples(), replace(CONFIG, **changes), output_dir=folder, accelerator=accelerator)


class NoCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class
    """Copies between host and GPU are errors: from and to memory that is not pinned, the host waits for them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {tensor.device.type for tensor in (*args[:2], result) if isinstance(tensor, torch.Tensor)}
            assert len(devices) == 1, f"{func} between {devices}"
        return result


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("options", EVERYTHING.values(), ids=EVERYTHING)
def test_no_step_waits_for_a_value(options: dict[str, Any], channels_last: bool, tmp_path: Path) -> None:
    policy = make_policy(**options)
    batch, noise = Samples().batch(torch.arange(8)), policy.sample_noise(8, seeded_generator(0, 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = trainer_on_a_gpu(policy, tmp_path, channels_last=channels_last)
        there: Any = ({name: value.to("cuda") for name, value in batch.items()}, noise.rows(slice(None), "cuda"))
        trainer.load_batch = lambda step: there  # prepared by a thread on a stream of its own
        with NoCopies():  # type: ignore[no-untyped-call]  # likewise
            for _ in range(5):  # two of them average the weights
                norm = trainer.train_step()
            with pytest.raises(AssertionError, match="between"):  # so that this test can fail
                torch.ones(2).to("cuda")
        assert norm.device.type == trainer.loss_sum.device.type == trainer.failed_step.device.type == "cuda"
        assert {parameter.device.type for parameter in trainer.averaged.parameters()} == {"cuda"}
        with pytest.raises(DataDependentOutputException):  # so that this test can fail
            trainer.require_finite()
