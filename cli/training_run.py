"""What every training has around its loop, whatever it learns: a directory, a plan, resuming, the picture at the end."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from flowchunk.cli.options import fill, to_yaml
from flowchunk.cli.plots import plot_loss
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.sample_order import seeded
from flowchunk.policy.train import Data, Evaluate, Trainer, TrainingConfig

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
MAY_DIFFER = ("output_dir", "training.resume", "logging.wandb")


@dataclass(frozen=True)
class TrainingRun:
    """A run's directory, and the machine it runs on; made by ``prepare``."""

    options: Mapping[str, Any]
    directory: Path
    accelerator: Accelerator
    console: Console
    is_resumed: bool

    def train(
        self,
        model: nn.Module,
        data: Data,
        *,
        kind: str,
        described: str,
        nbytes: int,
        validation: Data | None = None,
        evaluate: Evaluate | None = None,
        remember: Mapping[str, Any] | None = None,
    ) -> None:
        """Train the model in this run. described, nbytes: the data, for the plan. The rest: see ``Trainer``."""
        options, accelerator = self.options, self.accelerator
        trainer = Trainer(
            model,
            data,
            fill(TrainingConfig, {**options["training"], "seed": options["seed"]}, section="training"),
            output_dir=self.directory,
            accelerator=accelerator,
            evaluate=evaluate,
            validation=validation,
            wandb=options["logging"]["wandb"],
            remember={"task": options["task"]["name"], **(remember or {})},
        )
        if self.is_resumed:
            trainer.resume(kind=kind)
            self.console.print(f"resuming from step {trainer.step}")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "config.yaml").write_text(to_yaml(dict(options)))
        self._print_plan(trainer, described, nbytes)
        trainer.run()
        if accelerator.is_main_process:
            plot_loss(self.directory)
        run = self.directory
        self.console.print(f"done: {run}/checkpoints/best, {run}/metrics.jsonl, {run}/loss.png")

    def _print_plan(self, trainer: Trainer, described: str, nbytes: int) -> None:
        steps = trainer.config.steps - trainer.step
        seconds = _seconds_a_step(trainer) * steps
        vision = self.options.get("vision", {}).get("name")
        network = f"{vision} and {self.options['network']['name']}" if vision else self.options["network"]["name"]
        parameters = sum(parameter.numel() for parameter in trainer.module.parameters())
        held = (nbytes + 5 * 4 * parameters) / 2**20
        self.console.print(
            f"{network} with {parameters / 1e6:.2f} M parameters, {described}, {held:,.0f} MiB of data, weights and "
            f"optimiser on {trainer.accelerator.device};\n"
            f"{steps:,} steps of {trainer.config.batch_size}: about {seconds / 60:.1f} minutes without evaluations"
        )


def prepare(options: dict[str, Any]) -> TrainingRun:
    """The run that the options ask for. Raises ConfigurationError where another run is in the way."""
    if options["device"] not in ("auto", "cpu"):
        raise ConfigurationError(f"unknown device {options['device']!r}; there are auto, cpu")
    precision = options["training"]["matmul_precision"]
    try:
        torch.set_float32_matmul_precision(precision)
    except RuntimeError as error:
        raise ConfigurationError(f"training.matmul_precision={precision} must be highest, high or medium") from error
    if (kind := options["training"]["precision"]) not in PRECISIONS:
        raise ConfigurationError(f"training.precision={kind}: there are {', '.join(PRECISIONS)}")
    AcceleratorState._reset_state()  # another run of this process may have had another precision
    accelerator = Accelerator(cpu=options["device"] == "cpu", mixed_precision=PRECISIONS[kind])
    directory = Path(options["output_dir"]).expanduser()
    console = Console(quiet=not accelerator.is_main_process)
    return TrainingRun(options, directory, accelerator, console, _is_to_be_resumed(directory, options))


def with_output_dir(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a directory for the run, named by task, network and time where none is given."""
    if options["output_dir"] is None:
        if options["training"]["resume"]:
            raise ConfigurationError("training.resume=true needs output_dir=DIR, the run to continue")
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        options["output_dir"] = str(Path("outputs") / f"{options['task']['name']}-{options['network']['name']}-{now}")
    return options


def _is_to_be_resumed(run_dir: Path, options: Mapping[str, Any]) -> bool:
    """Whether to resume. Raises ConfigurationError where a run is in the way, or is not the one to resume."""
    saved = run_dir / "config.yaml"
    if not saved.exists():
        return False
    if not options["training"]["resume"]:
        raise ConfigurationError(
            f"{run_dir} holds a training run; add training.resume=true to continue it, or choose another output_dir"
        )
    before, now = _comparable(OmegaConf.to_container(OmegaConf.load(saved))), _comparable(options)
    if different := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
        changes = ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in different)
        raise ConfigurationError(f"{run_dir} was started with other options ({changes}); resume it with the same ones")
    return (run_dir / "checkpoints" / "last").exists() or (run_dir / "checkpoints" / ".last.previous").exists()


def _comparable(options: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _comparable(value, f"{path}.")
        elif path not in MAY_DIFFER:
            flat[path] = value
    return flat


def _seconds_a_step(trainer: Trainer, *, steps: int = 3) -> float:
    """Time a few steps on a copy, which leaves the run as it was."""
    model = copy.deepcopy(trainer.module)
    size = trainer.config.batch_size // trainer.accelerator.num_processes
    device = trainer.accelerator.device
    batch = trainer.data.batch(torch.arange(size, device=device) % len(trainer.data))
    draws = {name: values.to(device) for name, values in model.draw(size, seeded(0, 0)).items()}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    started = time.perf_counter()
    for step in range(steps + 1):
        with trainer.accelerator.autocast():
            total, weight = model(batch, draws)
        (total / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        started = time.perf_counter() if step == 0 else started
    return (time.perf_counter() - started) / steps
