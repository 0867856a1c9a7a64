"""What every training has around its loop, whatever it learns: a machine, a folder that may hold a run, a plan."""

from __future__ import annotations

import copy
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from rich.console import Console
from torch import nn

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.devices import choose_device, lacks_bfloat16
from flowchunk.policy.training.config import PRECISIONS, TrainingConfig
from flowchunk.policy.training.sample_order import seeded_generator
from flowchunk.policy.training.trainer import Data, Evaluate, Trainer

CHECKPOINTS = ("last", ".last.previous")
PROCESS_TIMEOUT = timedelta(hours=6)  # the others wait while one evaluates, or expands images
CHOSEN_DEVICE = "ACCELERATE_TORCH_DEVICE"  # the variable in which accelerate reads it


@dataclass(frozen=True)
class Plan:
    """What is said before a training begins. network, data: in words. nbytes: of the data in memory."""

    network: str
    data: str
    nbytes: int


@dataclass(frozen=True)
class TrainingRun:
    """A folder for a run, and the machine that it runs on; ``open_run`` makes one."""

    directory: Path
    config: TrainingConfig
    accelerator: Accelerator
    console: Console
    is_resumed: bool

    def train(
        self,
        model: nn.Module,
        data: Data,
        *,
        kind: str,
        plan: Plan,
        validation: Data | None = None,
        evaluate: Evaluate | None = None,
        metadata: Mapping[str, Any] | None = None,
        wandb: bool = False,
        write_run_files: Callable[[Path], object] | None = None,
    ) -> None:
        """Train the model from its beginning, or from where the run was left.

        kind: of its checkpoints. write_run_files: called with the folder by the main process once all fits together. For
        the others see ``Trainer``, and for the errors ``Trainer.resume``, ``Trainer.run`` and ``only_training``.
        """
        trainer = Trainer(
            model,
            data,
            self.config,
            output_dir=self.directory,
            accelerator=self.accelerator,
            evaluate=evaluate,
            validation=validation,
            wandb=wandb,
            metadata=metadata,
        )
        is_main = self.accelerator.is_main_process
        with ExitStack() as held:
            if self.is_resumed:
                if is_main:
                    held.enter_context(only_training(self.directory))
                trainer.resume(kind=kind)
                self.console.print(f"resuming from step {trainer.step}")
            self.accelerator.wait_for_everyone()
            if is_main:
                self.directory.mkdir(parents=True, exist_ok=True)
                if not self.is_resumed:
                    held.enter_context(only_training(self.directory))
                if write_run_files is not None:
                    write_run_files(self.directory)
            self._print_plan(trainer, plan)
            trainer.run()

    def _print_plan(self, trainer: Trainer, plan: Plan) -> None:
        steps = self.config.steps - trainer.step
        seconds = _seconds_per_step(trainer) * steps
        parameters = sum(parameter.numel() for parameter in trainer.module.parameters())
        held = (plan.nbytes + 5 * 4 * parameters) / 2**20
        self.console.print(
            f"{plan.network} with {parameters / 1e6:.2f} M parameters, {plan.data}, {held:,.0f} MiB of data, weights and "
            f"optimiser on {self.accelerator.device};\n"
            f"{steps:,} steps of {self.config.batch_size}: about {seconds / 60:.1f} minutes without evaluations"
            + (" (timed before compiling, which takes minutes and then saves some)" if self.config.compile else "")
        )
        if self.config.precision == "bf16" and lacks_bfloat16(self.accelerator.device):
            self.console.print(
                "training.precision=bf16: this processor has no instructions for bfloat16, which makes it many times slower "
                "than training.precision=fp32",
                style="yellow",
            )


def open_run(
    output_dir: str | Path, config: TrainingConfig, *, device: str = "auto", resume: bool = False
) -> TrainingRun:
    """The run in a folder, which need not exist, on a device of ``choose_device``; nothing is written yet.

    resume: whether a run that the folder holds is continued. Raises ConfigurationError where it holds one that is not to
    be continued, and for a device that is not there.
    """
    directory = Path(output_dir).expanduser()
    if holds_checkpoints(directory) and not resume:
        raise ConfigurationError(
            f"{directory} holds a training run; give resume=True to continue it, or choose another output_dir"
        )
    torch.set_float32_matmul_precision(config.matmul_precision)
    accelerator = make_accelerator(device, precision=config.precision)
    console = Console(quiet=not accelerator.is_main_process)
    if resume and not is_resumable(directory):
        console.print(f"{directory} holds no run to resume, so one is begun", style="yellow", soft_wrap=True)
    return TrainingRun(directory, config, accelerator, console, resume and is_resumable(directory))


@contextmanager
def only_training(directory: Path) -> Iterator[None]:
    """Hold the lock of a run's folder. Raises ConfigurationError if another process trains in it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigurationError(
            f"another process is training in {directory}; wait for its end or stop it, or choose another output_dir"
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def holds_checkpoints(directory: Path) -> bool:
    """Whether a folder holds a run, whole or not."""
    return is_resumable(directory) or (directory / "checkpoints" / "best").exists()


def is_resumable(directory: Path) -> bool:
    """Whether a folder holds a run that can be continued."""
    return any((directory / "checkpoints" / name).exists() for name in CHECKPOINTS)


def make_accelerator(device: str, *, precision: str = "fp32") -> Accelerator:
    """The machine to train on, by the name of its device; under torchrun each process has a device of its own.

    precision: a name of ``PRECISIONS``. Raises ConfigurationError for a device that is not there, and for one numbered
    device where there are several processes.
    """
    chosen, processes = choose_device(device), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and chosen.index is not None:
        raise ConfigurationError(f"device={device}: {processes} processes cannot share one; give device={chosen.type}")
    if processes == 1 and not torch.distributed.is_initialized():  # an earlier run of this process had another device
        AcceleratorState._reset_state(reset_partial_state=True)
    AcceleratorState._reset_state()  # and perhaps another precision
    with _device_for_accelerate(chosen if processes == 1 else None):
        return Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=PRECISIONS[precision],
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
        )


@contextmanager
def _device_for_accelerate(device: torch.device | None) -> Iterator[None]:
    """Let an ``Accelerator`` made within the block take this device; None for its own choice."""
    before = os.environ.pop(CHOSEN_DEVICE, None)
    if device is not None:
        os.environ[CHOSEN_DEVICE] = str(device)
        if device.index is not None:
            torch.cuda.set_device(device)
    try:
        yield
    finally:
        os.environ.pop(CHOSEN_DEVICE, None)
        if before is not None:
            os.environ[CHOSEN_DEVICE] = before


def _seconds_per_step(trainer: Trainer, *, steps: int = 3) -> float:
    """Time a few steps on a copy, which leaves the run as it was; of a batch that is shared out, one part is timed."""
    model, device, parts = copy.deepcopy(trainer.module), trainer.accelerator.device, trainer.config.num_micro_batches
    size = trainer.config.batch_size // (trainer.accelerator.num_processes * parts)
    batch = trainer.data.batch(torch.arange(size, device=device) % len(trainer.data))
    noise = model.sample_noise(size, seeded_generator(0, 0)).rows(slice(None), device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    times = []
    for _ in range(steps + 1):
        started = _now(device)
        with trainer.accelerator.autocast():
            total, weight = model(batch, noise)
        (total / weight).backward()
        learned = _now(device)
        optimizer.step()
        optimizer.zero_grad()
        times.append(parts * (learned - started) + _now(device) - learned)
    return sum(times[1:]) / steps  # the first one warms up


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
