"""The one training loop. It knows neither robots nor networks: it samples noise, steps, averages, evaluates and saves.

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
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from flowchunk.datasets.errors import CheckpointError, ConfigurationError, TrainingError
from flowchunk.policy.checkpoint import (
    find_checkpoint,
    load_tensors,
    read_checkpoint,
    read_json,
    replace_text,
    save_tensors,
)
from flowchunk.policy.migrations import migrated_name
from flowchunk.policy.noise import Noise
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.ema import averaged
from flowchunk.policy.training.optimizer_state import optimizer_tensors, require_same_data, restore_optimizer
from flowchunk.policy.training.prefetch import Prefetched
from flowchunk.policy.training.run_log import RunLog
from flowchunk.policy.training.sample_order import SampleOrder, mixed_seed, seeded

STATE = "training_state"
AVERAGE_EVERY = 4  # steps; a pass over all weights, so each step would be felt


PairNoise = Callable[[Mapping[str, Tensor], Any], Any]


class Trainable(Protocol):
    """What can be trained: a module that samples its own noise and whose forward gives (weighted error sum, weight sum).

    pair_noise: changes the noise of a whole batch, before it is shared out between processes and parts; mostly None.
    describe: what a checkpoint contains besides weights, as JSON takes it.
    """

    @property
    def pair_noise(self) -> PairNoise | None: ...

    def describe(self) -> dict[str, Any]: ...

    def sample_noise(self, batch_size: int, generator: torch.Generator) -> Noise: ...

    def save(
        self, path: Path, *, training: Mapping[str, Any] | None, write_extra_files: Callable[[Path], None] | None = None
    ) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...


class Data(Protocol):
    """What can be trained on: indexed samples that come as a batch of tensors."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


Evaluate = Callable[[Any], Mapping[str, float]]


class Trainer:
    """Train a module on data, into ``output_dir/checkpoints/{last,best}`` and ``output_dir/metrics.jsonl``.

    evaluate: measures the averaged module; its ``score`` (higher is better) chooses ``best``. Without it the loss on
    ``validation`` does, and without both, ``best`` is the last. metadata: goes into every checkpoint's summary.
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
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if config.batch_size % (accelerator.num_processes * config.num_micro_batches):
            parts = (
                f" in training.num_micro_batches={config.num_micro_batches} parts each"
                if config.num_micro_batches > 1
                else ""
            )
            raise ConfigurationError(
                f"training.batch_size={config.batch_size} cannot be shared evenly by {accelerator.num_processes} "
                f"processes{parts}"
            )
        self.config, self.data, self.validation = config, data, validation
        self.evaluate, self.wandb, self.metadata = evaluate, wandb, dict(metadata or {})
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
        self.load_batch = self.local_batch
        self.step = 0
        self.logged_step = 0
        self.best_score: float | None = None
        self.is_evaluated = True  # whether what this step asks for was measured
        self.loss_sum = torch.zeros((), device=accelerator.device)
        self.failed_step = torch.full((), -1, device=accelerator.device)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the current step to the last.

        Raises TrainingError at the first step whose loss or gradient is not finite; checkpoints on disk stay as they were.
        """
        main = self.accelerator.is_main_process
        log_options: dict[str, Any] = {"start": self.step, "is_evaluated": self.is_evaluated, "wandb": self.wandb}
        open_log = closing(RunLog(self.output_dir, **log_options)) if main else nullcontext()
        start, started, loss = self.step, time.perf_counter(), math.nan
        with (
            open_log as log,
            training_progress(self.config.steps, self.step, visible=main) as advance,
            self.prefetching(),
        ):
            if not self.is_evaluated:  # it was interrupted there
                self.evaluate_and_keep_best(log)
            while self.step < self.config.steps:
                norm = self.train_step()
                advance(self.step, loss)
                if self.step % self.config.log_every == 0:
                    self.require_finite()
                    loss = self.pop_mean_loss()
                    speed = (self.step - start) / (time.perf_counter() - started)
                    if log is not None:
                        metrics = {"loss": loss, "learning_rate": self.config.learning_rate_at(self.step - 1)}
                        log.write(self.step, {**metrics, "gradient_norm": float(norm), "steps_per_second": speed})
                self.evaluate_and_checkpoint(log)

    def train_step(self) -> Tensor:
        """One step of the optimiser, now and then of the average; returns the gradient's norm before clipping.

        Where the device computes behind our back (CUDA) nothing here waits for it.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step) * group["scale"]
        batch, noise = self.load_batch(self.step)
        torch.manual_seed(mixed_seed(config.seed, self.step, stream=2 + self.accelerator.process_index))  # for dropout
        loss = self.compute_gradients(batch, noise)
        norm = self.clip_gradients()
        is_new_failure = ~(norm + loss).isfinite() & (self.failed_step < 0)
        self.failed_step = torch.where(is_new_failure, self.step, self.failed_step)
        if self.accelerator.device.type == "cpu":
            self.require_finite()
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.step % AVERAGE_EVERY == 0:
            self.ema.update_parameters(self.module)
        self.loss_sum += loss
        self.step += 1
        return norm

    def require_finite(self) -> None:
        """Raise TrainingError where the loss or the gradient of a step was not finite."""
        if (step := int(self.failed_step)) >= 0:
            raise TrainingError(
                f"the loss or its gradient is not finite at step {step} of {self.config.steps}; checkpoints/last and best "
                "are of earlier steps and whole: look for values that are not finite in the data, or give a lower "
                "training.learning_rate or training.gradient_clip"
            )

    def compute_gradients(self, batch: dict[str, Tensor], noise: Noise) -> Tensor:
        """Leave the gradient of the batch's mean error in the parameters; returns that mean.

        It is the mean over all parts and processes, so that masks count alike however a batch is shared out.
        """
        accelerator, parts = self.accelerator, self.config.num_micro_batches
        processes = accelerator.num_processes  # DDP averages gradients; the global mean needs their sum
        if parts == 1:
            error, weight = self.parallel(batch, noise)
            weight = accelerator.reduce(weight.detach().clone(), "sum").clamp(min=1)  # a batch may be all padding
            accelerator.backward(error / weight * processes)
            return error.detach() / weight
        total, weights = torch.zeros_like(self.loss_sum), torch.zeros_like(self.loss_sum)
        for part in range(parts):
            with accelerator.no_sync(self.parallel) if part < parts - 1 else nullcontext():
                error, weight = self.parallel(part_of(batch, part, parts), noise.part(part, parts))
                accelerator.backward(error * processes)
            total, weights = total + error.detach(), weights + weight.detach()
        weights = accelerator.reduce(weights, "sum").clamp(min=1)  # known only now, so the gradients are divided by it
        torch._foreach_div_([p.grad for p in self.parallel.parameters() if p.grad is not None], weights)
        return total / weights

    def clip_gradients(self) -> Tensor:
        """Shorten the gradient to the configured norm, and return the norm it had; one that is short is not changed."""
        parameters = list(self.parallel.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if norm.device.type == "cpu" and norm <= self.config.gradient_clip:
            return norm  # saves a pass over the gradients; elsewhere asking would cost more than the pass
        torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        return norm

    def local_batch(self, step: int) -> tuple[dict[str, Tensor], Noise]:
        """This process's rows of the global batch and of its noise."""
        accelerator, size = self.accelerator, self.config.batch_size // self.accelerator.num_processes
        rows = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        noise = self.module.sample_noise(self.config.batch_size, seeded(self.config.seed, step))
        indices = self.order.indices(step).to(accelerator.device)
        if (pair_noise := self.module.pair_noise) is not None:
            noise = pair_noise(self.data.batch(indices), noise)
        return self.data.batch(indices[rows]), noise.rows(rows, accelerator.device)

    @contextmanager
    def prefetching(self) -> Iterator[None]:
        """Prepare batches a step ahead, where that is wanted."""
        is_wanted = self.config.prefetch
        if not (self.accelerator.device.type != "cpu" if is_wanted is None else is_wanted):
            yield
            return
        prefetched = Prefetched(self.local_batch, last=self.config.steps, device=self.accelerator.device)
        self.load_batch = prefetched
        try:
            yield
        finally:
            prefetched.close()
            self.load_batch = self.local_batch

    def pop_mean_loss(self) -> float:
        """Mean loss since this was last asked, over all processes."""
        mean = float(self.accelerator.reduce(self.loss_sum, "sum")) / max(1, self.step - self.logged_step)
        self.loss_sum, self.logged_step = torch.zeros_like(self.loss_sum), self.step
        return mean

    def evaluate_and_checkpoint(self, log: RunLog | None) -> None:
        """Save and evaluate, where this step asks for it: ``last`` is on disk before an evaluation begins."""
        config, is_last = self.config, self.step == self.config.steps
        is_due = is_last or self.step % config.evaluation_interval == 0
        if not is_due and self.step % config.checkpoint_every:
            return
        self.require_finite()
        self.is_evaluated = not is_due
        loss_sum = self.accelerator.reduce(self.loss_sum, "sum")
        if log is not None:
            self.save_last(loss_sum)
        if is_due:
            self.evaluate_and_keep_best(log)
        self.accelerator.wait_for_everyone()

    def evaluate_and_keep_best(self, log: RunLog | None) -> None:
        """Measure the averaged module on the main process, and save it as ``best`` where no finite score was higher."""
        self.is_evaluated = True
        if log is None:
            return
        metrics = self.compute_metrics()
        log.write(self.step, metrics)
        score = metrics["score"]
        if math.isfinite(score) and (self.best_score is None or score >= self.best_score):
            self.best_score = score
            self.averaged.save(self.output_dir / "checkpoints" / "best", training=self.summary(metrics))
        self.note_evaluated()

    @property
    def averaged(self) -> Any:
        """The module with averaged weights."""
        return self.ema.module

    # -- measuring ----------------------------------------------------------------------------------------------------

    def compute_metrics(self) -> dict[str, float]:
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
        at_once = self.config.batch_size // (self.accelerator.num_processes * self.config.num_micro_batches)
        order, device = SampleOrder(len(data), size, seed=0), self.accelerator.device
        total, weight = 0.0, 0.0
        for number in range(min(batches, math.ceil(len(data) / size))):
            noise, indices = self.averaged.sample_noise(size, seeded(0, number)), order.indices(number).to(device)
            if (pair_noise := self.averaged.pair_noise) is not None:
                noise = pair_noise(data.batch(indices), noise)
            for start in range(0, size, at_once):  # no more at once than in training
                rows = slice(start, start + at_once)
                error, count = self.averaged(data.batch(indices[rows]), noise.rows(rows, device))
                total, weight = total + float(error), weight + float(count)
        return total / max(weight, 1.0)

    def summary(self, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What a checkpoint stores about its training."""
        run = {"step": self.step, "steps": self.config.steps, "seed": self.config.seed}
        return {**self.metadata, **run, "metrics": dict(metrics or {})}

    # -- checkpointing ----------------------------------------------------------------------------------------------------

    def save_last(self, loss_sum: Tensor) -> None:
        """Write ``last``: the averaged weights to act with, and beside them all that resuming needs."""

        def write_state(directory: Path) -> None:
            live = {f"live.{name}": value for name, value in self.module.state_dict().items()}
            tensors = {**live, **optimizer_tensors(self.optimizer), "loss_sum": loss_sum}
            files = save_tensors(directory, STATE, tensors)
            (directory / f"{STATE}.json").write_text(json.dumps({**self.state(), "files": files}))

        self.averaged.save(
            self.output_dir / "checkpoints" / "last", training=self.summary(), write_extra_files=write_state
        )

    def note_evaluated(self) -> None:
        """Tell ``last`` that its step was evaluated, and the best score since."""
        file = self.output_dir / "checkpoints" / "last" / f"{STATE}.json"
        if file.exists():
            replace_text(file, json.dumps({**read_json(file), **self.state()}))

    def state(self) -> dict[str, Any]:
        """What resuming needs beside tensors."""
        return {
            "step": self.step,
            "logged_step": self.logged_step,
            "is_evaluated": self.is_evaluated,
            "best_score": self.best_score,
            "samples": len(self.data),
        }

    def resume(self, *, kind: str) -> None:
        """Continue from ``last``: afterwards everything is as it was at that step.

        Raises CheckpointError where there is nothing to resume, or where it was trained on other data.
        """
        directory = find_checkpoint(self.output_dir / "checkpoints" / "last")
        description, weights = read_checkpoint(directory, kind=kind)
        state = read_json(directory / f"{STATE}.json")
        tensors = load_tensors(directory, state["files"])
        require_same_data(
            {**description, "samples": state.get("samples", len(self.data))},
            {**self.module.describe(), "samples": len(self.data)},
            run=self.output_dir,
        )
        try:
            self.averaged.load_state_dict(weights)
            live = {name[5:]: value for name, value in tensors.items() if name.startswith("live.")}
            version = description["format_version"]
            self.module.load_state_dict({migrated_name(name, version): value for name, value in live.items()})
            restore_optimizer(self.optimizer, tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{directory} does not fit this training run: {error}") from error
        self.step, self.best_score = state["step"], state["best_score"]
        self.is_evaluated = state.get("is_evaluated", True)
        self.logged_step = state.get("logged_step", self.step - self.step % self.config.log_every)
        self.ema.n_averaged.fill_(math.ceil(self.step / AVERAGE_EVERY))
        if self.accelerator.is_main_process:  # it is the sum over all
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
        if parameter.requires_grad:
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
