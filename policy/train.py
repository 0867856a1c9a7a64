"""The one training loop. It knows neither robots nor networks: it draws, steps, averages, evaluates and saves.

All randomness is a function of (seed, step): the order of the data and the noise of each sample are drawn for the whole
global batch from a generator seeded so, and every process takes its rows. So a run resumed after a crash, or spread over
several processes, sees the numbers that one uninterrupted process sees.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, load_tensors, read_checkpoint, read_json, save_tensors
from flowchunk.policy.ema import averaged
from flowchunk.policy.prefetch import Prefetched
from flowchunk.policy.run_log import RunLog
from flowchunk.policy.sample_order import SampleOrder, seeded
from flowchunk.policy.training_state import optimizer_tensors, restore_optimizer

STATE = "training_state"
AVERAGE_EVERY = 4  # steps; a pass over all weights, so each step would be felt


class Trainable(Protocol):
    """What can be trained: a module that draws its own noise and whose forward gives (weighted error sum, weight sum)."""

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]: ...

    def save(
        self, path: Path, *, training: Mapping[str, Any] | None, write_more: Callable[[Path], None] | None = None
    ) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...


class Data(Protocol):
    """What can be trained on: indexed samples that come as a batch of tensors."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


Evaluate = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how to train.

    batch_size: over all processes. warmup_steps: by default min(500, steps / 10). evaluate_every: by default a fifth of
    the steps. accumulate: in how many parts a batch is learned from, for less memory. channels_last: how convolutions'
    weights lie in memory. compile: by ``torch.compile``. prefetch: prepare the next batch in a thread (by default where
    another device than the CPU does the learning).
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
    accumulate: int = 1
    channels_last: bool = False
    compile: bool = False
    prefetch: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"training.{name}={getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"training.{name}={getattr(self, name)} must be above 0")
        for name, lowest in (("weight_decay", 0), ("warmup_steps", 0), ("evaluate_every", 1)):
            if (value := getattr(self, name)) is not None and value < lowest:
                raise ConfigurationError(f"training.{name}={value} must be at least {lowest}")

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


class Trainer:
    """Train a module on data, into ``output_dir/checkpoints/{last,best}`` and ``output_dir/metrics.jsonl``.

    evaluate: measures the averaged module; its ``score`` (higher is better) chooses ``best``. Without it the loss on
    ``validation`` does, and without both, ``best`` is the last. remember: goes into every checkpoint's summary.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        config: TrainingConfig,
        *,
        output_dir: Path,
        accelerator: Accelerator,
        evaluate: Evaluate | None = None,
        validation: Data | None = None,
        wandb: bool = False,
        remember: Mapping[str, Any] | None = None,
    ) -> None:
        if config.batch_size % (accelerator.num_processes * config.accumulate):
            parts = f" in training.accumulate={config.accumulate} parts each" if config.accumulate > 1 else ""
            raise ConfigurationError(
                f"training.batch_size={config.batch_size} cannot be shared evenly by {accelerator.num_processes} "
                f"processes{parts}"
            )
        self.config, self.data, self.validation = config, data, validation
        self.evaluate, self.wandb, self.remember = evaluate, wandb, dict(remember or {})
        self.output_dir, self.accelerator = output_dir, accelerator
        memory_format = torch.channels_last if config.channels_last else torch.preserve_format
        self.module: Any = model.to(accelerator.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.ema = averaged(self.module, max_decay=config.ema_max_decay, every=AVERAGE_EVERY)
        groups = parameter_groups(self.module)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        forward = torch.compile(self.module) if config.compile else self.module
        self.parallel, self.prepared_optimizer = accelerator.prepare(forward, self.optimizer)
        self.order = SampleOrder(len(data), config.batch_size, config.seed)
        self.batch_of = self.share_of_batch
        self.step = 0
        self.best_score: float | None = None
        self.loss_sum = torch.zeros((), device=accelerator.device)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the current step to the last."""
        main = self.accelerator.is_main_process
        open_log = closing(RunLog(self.output_dir, start=self.step, wandb=self.wandb)) if main else nullcontext()
        start, started, loss = self.step, time.perf_counter(), math.nan
        with (
            open_log as log,
            training_progress(self.config.steps, self.step, visible=main) as advance,
            self.prefetching(),
        ):
            while self.step < self.config.steps:
                norm = self.train_step()
                advance(self.step, loss)
                if self.step % self.config.log_every == 0:
                    loss = self.take_mean_loss()
                    speed = (self.step - start) / (time.perf_counter() - started)
                    if log is not None:
                        learning_rate = self.config.learning_rate_at(self.step - 1)
                        log.write(
                            self.step,
                            {
                                "loss": loss,
                                "learning_rate": learning_rate,
                                "gradient_norm": norm,
                                "steps_per_second": speed,
                            },
                        )
                self.pause(log)

    def train_step(self) -> float:
        """One step of the optimiser, now and then of the average; returns the gradient's norm before clipping."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step) * group["scale"]
        loss = self.learn_from(*self.batch_of(self.step))
        norm = self.clip_gradients()
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.step % AVERAGE_EVERY == 0:
            self.ema.update_parameters(self.module)
        self.loss_sum += loss
        self.step += 1
        return norm

    def learn_from(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        """Leave the gradient of the batch's mean error in the parameters; returns that mean.

        It is the mean over all parts and processes, so that masks count alike however a batch is shared out.
        """
        accelerator, parts = self.accelerator, self.config.accumulate
        processes = accelerator.num_processes  # DDP averages gradients; the global mean needs their sum
        if parts == 1:
            error, weight = self.parallel(batch, draws)
            weight = accelerator.reduce(weight.detach().clone(), "sum").clamp(min=1)  # a batch may be all padding
            accelerator.backward(error / weight * processes)
            return error.detach() / weight
        total, weights = torch.zeros_like(self.loss_sum), torch.zeros_like(self.loss_sum)
        for part in range(parts):
            with accelerator.no_sync(self.parallel) if part < parts - 1 else nullcontext():
                error, weight = self.parallel(*(part_of(rows, part, parts) for rows in (batch, draws)))
                accelerator.backward(error * processes)
            total, weights = total + error.detach(), weights + weight.detach()
        weights = accelerator.reduce(weights, "sum").clamp(min=1)  # known only now, so the gradients are divided by it
        torch._foreach_div_([p.grad for p in self.parallel.parameters() if p.grad is not None], weights)
        return total / weights

    def clip_gradients(self) -> float:
        """Shorten the gradient to the configured norm, and return the norm it had; one that is short is not touched."""
        parameters = list(self.parallel.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm <= self.config.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        return float(norm)

    def share_of_batch(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """This process's rows of the global batch and of its draws."""
        accelerator, size = self.accelerator, self.config.batch_size // self.accelerator.num_processes
        rows = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        draws = self.module.draw(self.config.batch_size, seeded(self.config.seed, step))
        batch = self.data.batch(self.order.indices(step)[rows].to(accelerator.device))
        return batch, {name: values[rows].to(accelerator.device) for name, values in draws.items()}

    @contextmanager
    def prefetching(self) -> Iterator[None]:
        """Prepare batches a step ahead, where that is wanted."""
        is_wanted = self.config.prefetch
        if not (self.accelerator.device.type != "cpu" if is_wanted is None else is_wanted):
            yield
            return
        prefetched = Prefetched(self.share_of_batch, last=self.config.steps)
        self.batch_of = prefetched
        try:
            yield
        finally:
            prefetched.close()
            self.batch_of = self.share_of_batch

    def take_mean_loss(self) -> float:
        """Mean loss since this was last asked, over all processes."""
        mean = float(self.accelerator.reduce(self.loss_sum, "sum")) / self.config.log_every
        self.loss_sum = torch.zeros_like(self.loss_sum)
        return mean

    def pause(self, log: RunLog | None) -> None:
        """Evaluate and save, where this step asks for it."""
        config, last = self.config, self.step == self.config.steps
        due = last or self.step % config.evaluation_interval == 0
        if due and log is not None:
            metrics = self.measure()
            log.write(self.step, metrics)
            if self.best_score is None or not metrics["score"] < self.best_score:
                self.best_score = metrics["score"]
                self.averaged.save(self.output_dir / "checkpoints" / "best", training=self.summary(metrics))
        if (last or self.step % config.checkpoint_every == 0) and log is not None:
            self.save_last()
        if due or last or self.step % config.checkpoint_every == 0:
            self.accelerator.wait_for_everyone()

    @property
    def averaged(self) -> Any:
        """The module with averaged weights."""
        return self.ema.module

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self) -> dict[str, float]:
        """Validation loss and evaluation of the averaged module; ``score`` decides which is best."""
        metrics = {}
        self.averaged.eval()
        if self.validation is not None and len(self.validation):
            metrics["validation_loss"] = self.validation_loss(self.validation)
        if self.evaluate is not None:
            metrics |= self.evaluate(self.averaged)
        return {"score": -metrics.get("validation_loss", 0.0)} | metrics

    @torch.no_grad()
    def validation_loss(self, data: Data, *, batches: int = 16) -> float:
        """Mean loss of the averaged module on up to so many batches, with the same samples and noise every time."""
        size = min(self.config.batch_size, len(data))
        order = SampleOrder(len(data), size, seed=0)
        total, weight = 0.0, 0.0
        for number in range(min(batches, math.ceil(len(data) / size))):
            draws = self.averaged.draw(size, seeded(0, number))
            draws = {name: values.to(self.accelerator.device) for name, values in draws.items()}
            error, count = self.averaged(data.batch(order.indices(number).to(self.accelerator.device)), draws)
            total, weight = total + float(error), weight + float(count)
        return total / max(weight, 1.0)

    def summary(self, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What a checkpoint remembers of its training."""
        run = {"step": self.step, "steps": self.config.steps, "seed": self.config.seed}
        return {**self.remember, **run, "metrics": dict(metrics or {})}

    # -- surviving ----------------------------------------------------------------------------------------------------

    def save_last(self) -> None:
        """Write ``last``: the averaged weights to act with, and beside them all that resuming needs."""

        def write_state(directory: Path) -> None:
            live = {f"live.{name}": value for name, value in self.module.state_dict().items()}
            tensors = {**live, **optimizer_tensors(self.optimizer), "loss_sum": self.loss_sum}
            files = save_tensors(directory, STATE, tensors)
            state = {"step": self.step, "best_score": self.best_score, "files": files}
            (directory / f"{STATE}.json").write_text(json.dumps(state))

        self.averaged.save(self.output_dir / "checkpoints" / "last", training=self.summary(), write_more=write_state)

    def resume(self, *, kind: str) -> None:
        """Continue from ``last``: afterwards everything is as it was at that step. Raises CheckpointError."""
        directory = find_checkpoint(self.output_dir / "checkpoints" / "last")
        _, weights = read_checkpoint(directory, kind=kind)
        state = read_json(directory / f"{STATE}.json")
        tensors = load_tensors(directory, state["files"])
        try:
            self.averaged.load_state_dict(weights)
            self.module.load_state_dict({name[5:]: v for name, v in tensors.items() if name.startswith("live.")})
            restore_optimizer(self.optimizer, tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{directory} does not fit this training run: {error}") from error
        self.step, self.best_score = state["step"], state["best_score"]
        self.ema.n_averaged.fill_(math.ceil(self.step / AVERAGE_EVERY))
        self.loss_sum = tensors["loss_sum"].to(self.accelerator.device)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters by the part of the learning rate that moves them: 1, unless a module's ``learning_rate_scales``
    names one of its children (a backbone that was trained before is moved gently).
    """
    scale_of = {
        parameter: scale
        for module in model.modules()
        for child, scale in getattr(module, "learning_rate_scales", {}).items()
        for parameter in module.get_submodule(child).parameters()
    }
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(scale_of.get(parameter, 1.0), []).append(parameter)
    return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]


def part_of(rows: Mapping[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    """One of so many equal parts of every tensor."""
    return {name: values.chunk(parts)[part] for name, values in rows.items()}


@contextmanager
def training_progress(steps: int, done: int, *, visible: bool) -> Iterator[Callable[[int, float], None]]:
    """A progress bar with the loss and the time left; yields ``advance(step, loss)``."""
    columns = (*Progress.get_default_columns(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, disable=not visible) as progress:
        task = progress.add_task("training", total=steps, completed=done, loss=math.nan)
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)
