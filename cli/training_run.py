"""What every training has around its loop, whatever it learns: a directory, a plan, resuming, the picture at the end."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.options import fill, read_options, to_yaml
from flowchunk.cli.plots import plot_loss
from flowchunk.cli.reports import print_written
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import replace_text
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.sample_order import seeded
from flowchunk.policy.training.trainer import Data, Evaluate, Trainer

PRECISIONS = {"fp32": "no", "bf16": "bf16"}
CONFIG = "config.yaml"
MAY_DIFFER = (  # what a run may be resumed with, although it was started with something else
    "output_dir",
    "device",
    "logging.",
    "evaluation.",
    "dataset.path",  # the data themselves are compared
    "dataset.cache",
    "training.resume",
    "training.prefetch",
    "training.checkpoint_every",
    "training.evaluate_every",
    "training.log_every",
)
PROCESS_TIMEOUT = timedelta(hours=6)  # the others wait while one evaluates, or expands images


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
        metadata: Mapping[str, Any] | None = None,
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
            metadata={"task": options["task"]["name"], **(metadata or {})},
        )
        if self.is_resumed:
            trainer.resume(kind=kind)
            self.console.print(f"resuming from step {trainer.step}")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.directory.mkdir(parents=True, exist_ok=True)
            replace_text(self.directory / CONFIG, to_yaml(dict(options)))
        self._print_plan(trainer, described, nbytes)
        trainer.run()
        if accelerator.is_main_process:
            plot_loss(self.directory)
        run = self.directory
        if accelerator.is_main_process:
            print_written(self.console, run / "checkpoints" / "best", run / "metrics.jsonl", run / "loss.png")

    def _print_plan(self, trainer: Trainer, described: str, nbytes: int) -> None:
        steps = trainer.config.steps - trainer.step
        seconds = _seconds_per_step(trainer) * steps
        vision = self.options.get("vision", {}).get("name")
        network = f"{vision} and {self.options['network']['name']}" if vision else self.options["network"]["name"]
        parameters = sum(parameter.numel() for parameter in trainer.module.parameters())
        held = (nbytes + 5 * 4 * parameters) / 2**20
        self.console.print(
            f"{network} with {parameters / 1e6:.2f} M parameters, {described}, {held:,.0f} MiB of data, weights and "
            f"optimiser on {trainer.accelerator.device};\n"
            f"{steps:,} steps of {trainer.config.batch_size}: about {seconds / 60:.1f} minutes without evaluations"
            + (" (timed before compiling, which takes minutes and then saves some)" if trainer.config.compile else "")
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
    accelerator = Accelerator(
        cpu=options["device"] == "cpu",
        mixed_precision=PRECISIONS[kind],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT)],
    )
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
    saved = run_dir / CONFIG
    has_checkpoint = any((run_dir / "checkpoints" / name).exists() for name in ("last", ".last.previous", "best"))
    if not saved.exists() and not has_checkpoint:
        return False
    if not options["training"]["resume"]:
        raise ConfigurationError(
            f"{run_dir} holds a training run; add training.resume=true to continue it, or choose another output_dir"
        )
    if not saved.exists():
        raise ConfigurationError(
            f"{run_dir} holds checkpoints but no {CONFIG}, so it cannot be told what they were trained with; bring it back, "
            "or choose another output_dir and start from these weights with training.init_from"
        )
    before = _saved_options(saved)
    now, defaults = _comparable(options), _comparable(_defaults(options))

    def then(key: str) -> Any:
        """What it was; options that came since then were as they are by default."""
        is_known = any(key == known or key.startswith(f"{known}.") for known in before)
        return before.get(key) if is_known else defaults.get(key)

    if different := sorted(key for key in before.keys() | now.keys() if then(key) != now.get(key)):
        changes = ", ".join(f"{key}: {then(key)} then, {now.get(key)} now" for key in different)
        raise ConfigurationError(f"{run_dir} was started with other options ({changes}); resume it with the same ones")
    return any((run_dir / "checkpoints" / name).exists() for name in ("last", ".last.previous"))


def _saved_options(file: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # of the YAML parser, too
        raise ConfigurationError(
            f"{file} cannot be read ({error}); bring it back, or choose another output_dir"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigurationError(f"{file} is empty or damaged; bring it back, or choose another output_dir")
    return _comparable(content)


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options would be if only what has to be chosen was."""
    task = options["task"]["name"]
    if task in DOMAINS:
        return read_options("train_generative", [f"task={task}", f"dataset={options['dataset']}"])
    return read_options("train", [f"task={task}", "dataset.path=-"])


def _comparable(options: Any, prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names, without those that do not change what is learned from when."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _comparable(value, f"{path}.")
        elif not path.startswith(MAY_DIFFER):
            flat[path] = value
    return flat


def _seconds_per_step(trainer: Trainer, *, steps: int = 3) -> float:
    """Time a few steps on a copy, which leaves the run as it was; of a batch that is shared out, one part is timed."""
    model, device, parts = copy.deepcopy(trainer.module), trainer.accelerator.device, trainer.config.num_micro_batches
    size = trainer.config.batch_size // (trainer.accelerator.num_processes * parts)
    batch = trainer.data.batch(torch.arange(size, device=device) % len(trainer.data))
    noise = model.sample_noise(size, seeded(0, 0)).rows(slice(None), device)
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
