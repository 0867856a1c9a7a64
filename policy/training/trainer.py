"""The training loop of all models: it samples noise, steps, averages, evaluates and saves.

All randomness is a function of (seed, step): the order of the data and the noise of each sample are generated for the whole
global batch, and every process takes its rows. So a run that is resumed after a crash, or that several processes share,
computes with the same numbers as one uninterrupted process.
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
from flowchunk.policy.migrations import migrate_weight_name
from flowchunk.policy.noise import Noise
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.ema import WeightAverage
from flowchunk.policy.training.optimizer_state import optimizer_tensors, require_same_data, restore_optimizer
from flowchunk.policy.training.parameter_groups import parameter_groups
from flowchunk.policy.training.prefetch import Prefetched
from flowchunk.policy.training.progress import training_progress
from flowchunk.policy.training.run_log import RunLog
from flowchunk.policy.training.sample_order import SampleOrder, derive_seed, seeded_generator

STATE = "training_state"
AVERAGE_EVERY = 4  # steps; a pass over all weights, which would take noticeable time in every step


PairNoise = Callable[[Mapping[str, Tensor], Any], Any]


class Trainable(Protocol):
    """A module that can be trained: it samples its own noise; its forward returns (sum of weighted errors, sum of weights).

    pair_noise: a function that changes the noise of a whole batch, before it is split between processes and micro-batches;
    usually None. describe: what a checkpoint contains besides weights, as JSON values.
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
    """Training data: indexed samples, read as batches of tensors {name: (B, …)}."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> dict[str, Tensor]: ...


Evaluate = Callable[[Any], Mapping[str, float]]


class Trainer:
    """Trains a module on data; writes ``output_dir/checkpoints/{last,best}`` and ``output_dir/metrics.jsonl``.

    evaluate: a function from the averaged module to metrics, whose ``score`` (higher is better) chooses ``best``. Without it
    the loss on ``validation`` does; without either, ``best`` is the last. metadata: stored in every checkpoint. Raises
    ConfigurationError if processes and micro-batches do not divide the batch evenly.
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
                f"training.batch_size={config.batch_size} cannot be split evenly between {accelerator.num_processes} "
                f"processes{parts}"
            )
        self.config, self.data, self.validation = config, data, validation
        self.evaluate, self.wandb, self.metadata = evaluate, wandb, dict(metadata or {})
        self.output_dir, self.accelerator = output_dir, accelerator
        memory_format = torch.channels_last if config.channels_last else torch.preserve_format
        self.module: Any = model.to(accelerator.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.ema = WeightAverage(self.module, max_decay=config.ema_max_decay, every=AVERAGE_EVERY)
        groups = parameter_groups(self.module)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        can_capture = config.cuda_graphs and accelerator.num_processes == config.num_micro_batches == 1
        mode = "reduce-overhead" if can_capture else None  # torch's name for CUDA graphs; gradients must not accumulate
        forward = torch.compile(self.module, mode=mode) if config.compile else self.module
        self.parallel, self.prepared_optimizer = accelerator.prepare(forward, self.optimizer)
        self.parameters = list(self.parallel.parameters())
        self.order = SampleOrder(len(data), config.batch_size, config.seed)
        self.load_batch = self.local_batch
        self.step = 0
        self.logged_step = 0
        self.best_score: float | None = None
        self.is_evaluated = True  # whether the evaluation due at this step is done
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
            if not self.is_evaluated:  # the evaluation was interrupted
                self.evaluate_and_keep_best(log)
            while self.step < self.config.steps:
                norm = self.train_step()
                if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                    self.require_finite()
                    loss = self.pop_mean_loss()
                    speed = (self.step - start) / (time.perf_counter() - started)
                    if log is not None:
                        metrics = {"loss": loss, "learning_rate": self.config.learning_rate_at(self.step - 1)}
                        log.write(self.step, {**metrics, "gradient_norm": float(norm), "steps_per_second": speed})
                advance(self.step, loss)
                self.evaluate_and_checkpoint(log)

    def train_step(self) -> Tensor:
        """One step of the optimizer, and every few steps of the average; returns the gradient's norm before clipping.

        On a device that computes asynchronously (CUDA) nothing here waits for it.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(self.step) * group["scale"]
        batch, noise = self.load_batch(self.step)
        torch.manual_seed(derive_seed(config.seed, self.step, stream=2 + self.accelerator.process_index))  # for dropout
        loss = self.compute_gradients(batch, noise)
        norm = self.clip_gradients()
        is_new_failure = ~(norm + loss).isfinite() & (self.failed_step < 0)
        self.failed_step = torch.where(is_new_failure, self.step, self.failed_step)
        if self.accelerator.device.type == "cpu":
            self.require_finite()
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.step % AVERAGE_EVERY == 0:
            self.ema.update(self.module)
        self.loss_sum += loss
        self.step += 1
        return norm

    def require_finite(self) -> None:
        """Raise TrainingError if the loss or the gradient of a step was not finite."""
        if (step := int(self.failed_step)) >= 0:
            raise TrainingError(
                f"the loss or its gradient is not finite at step {step} of {self.config.steps}; checkpoints/last and best "
                "are complete and of earlier steps: look for values that are not finite in the data, or give a lower "
                "training.learning_rate or training.gradient_clip"
            )

    def compute_gradients(self, batch: dict[str, Tensor], noise: Noise) -> Tensor:
        """Set the parameters' gradients to that of the batch's mean error; returns this process's contribution to that mean.

        The mean is over all micro-batches and processes, so that masks have the same effect however a batch is split.
        """
        accelerator, count = self.accelerator, self.config.num_micro_batches
        processes = accelerator.num_processes  # DDP averages gradients; the global mean needs their sum
        if count == 1:
            error, weight = self.parallel(batch, noise)
            weight = accelerator.reduce(weight.detach().clone(), "sum").clamp(min=1)  # all may be padding
            accelerator.backward(error / weight * processes)
            return error.detach() / weight
        total, weights = torch.zeros_like(self.loss_sum), torch.zeros_like(self.loss_sum)
        for index in range(count):
            with accelerator.no_sync(self.parallel) if index < count - 1 else nullcontext():
                error, weight = self.parallel(micro_batch(batch, index, count), noise.micro_batch(index, count))
                accelerator.backward(error * processes)
            total, weights = total + error.detach(), weights + weight.detach()
        weights = accelerator.reduce(weights, "sum").clamp(min=1)  # known only now, so it divides the gradients
        torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], weights)
        return total / weights

    def clip_gradients(self) -> Tensor:
        """Scale the gradient down to the configured norm if its own is larger; returns the norm that it had."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if norm.device.type == "cpu" and norm <= self.config.gradient_clip:
            return norm  # saves a pass over the gradients; on a GPU the comparison would cost more than the pass
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.gradient_clip, norm)
        return norm

    def local_batch(self, step: int) -> tuple[dict[str, Tensor], Noise]:
        """This process's rows of the global batch and of its noise."""
        accelerator, size = self.accelerator, self.config.batch_size // self.accelerator.num_processes
        rows = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        noise = self.module.sample_noise(self.config.batch_size, seeded_generator(self.config.seed, step))
        indices = self.order.indices(step).to(accelerator.device)
        if (pair_noise := self.module.pair_noise) is not None:
            noise = pair_noise(self.data.batch(indices), noise)
        return self.data.batch(indices[rows]), noise.rows(rows, accelerator.device)

    @contextmanager
    def prefetching(self) -> Iterator[None]:
        """Prepare batches one step ahead, if the configuration says so."""
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
        """Mean loss since the last call, over all processes."""
        mean = float(self.accelerator.reduce(self.loss_sum, "sum")) / max(1, self.step - self.logged_step)
        self.loss_sum, self.logged_step = torch.zeros_like(self.loss_sum), self.step
        return mean

    def evaluate_and_checkpoint(self, log: RunLog | None) -> None:
        """Save and evaluate if it is due at this step: ``last`` is written before an evaluation starts."""
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
        """Evaluate the averaged module on the main process; save it as ``best`` if its score is finite and the highest."""
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

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def compute_metrics(self) -> dict[str, float]:
        """Validation loss and evaluation of the averaged module; ``score`` decides which checkpoint is best."""
        metrics = {}
        self.averaged.eval()
        if self.validation is not None and len(self.validation):
            metrics["validation_loss"] = self.validation_loss(self.validation)
        if self.evaluate is not None:
            evaluation = self.evaluate(self.averaged)
            if "score" not in evaluation:
                raise ConfigurationError(
                    f"evaluate must return a 'score', by which the best checkpoint is chosen, but returned {dict(evaluation)}"
                )
            metrics |= evaluation
        return {"score": -metrics.get("validation_loss", 0.0)} | metrics

    @torch.no_grad()
    def validation_loss(self, data: Data, *, batches: int = 16) -> float:
        """Mean loss of the averaged module on up to ``batches`` batches, with the same samples and noise every time."""
        size = min(self.config.batch_size, len(data))
        max_rows = self.config.batch_size // (self.accelerator.num_processes * self.config.num_micro_batches)
        order, device = SampleOrder(len(data), size, seed=0), self.accelerator.device
        total, weight = 0.0, 0.0
        for number in range(min(batches, math.ceil(len(data) / size))):
            noise = self.averaged.sample_noise(size, seeded_generator(0, number))
            indices = order.indices(number).to(device)
            if (pair_noise := self.averaged.pair_noise) is not None:
                noise = pair_noise(data.batch(indices), noise)
            for start in range(0, size, max_rows):  # no more memory than in training
                rows = slice(start, start + max_rows)
                error, count = self.averaged(data.batch(indices[rows]), noise.rows(rows, device))
                total, weight = total + float(error), weight + float(count)
        return total / max(weight, 1.0)

    def summary(self, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
        """What a checkpoint stores about its training."""
        run = {"step": self.step, "steps": self.config.steps, "seed": self.config.seed}
        return {**self.metadata, **run, "metrics": dict(metrics or {})}

    # -- checkpointing ----------------------------------------------------------------------------------------------------

    def save_last(self, loss_sum: Tensor) -> None:
        """Write ``last``: the averaged weights to act with, and everything that resuming needs."""

        def write_state(directory: Path) -> None:
            live = {f"live.{name}": value for name, value in self.module.state_dict().items()}
            tensors = {**live, **optimizer_tensors(self.optimizer), "loss_sum": loss_sum}
            files = save_tensors(directory, STATE, tensors)
            (directory / f"{STATE}.json").write_text(json.dumps({**self.state(), "files": files}))

        self.averaged.save(
            self.output_dir / "checkpoints" / "last", training=self.summary(), write_extra_files=write_state
        )

    def note_evaluated(self) -> None:
        """Record in ``last`` that its step is evaluated, and the best score."""
        file = self.output_dir / "checkpoints" / "last" / f"{STATE}.json"
        if file.exists():
            replace_text(file, json.dumps({**read_json(file), **self.state()}))

    def state(self) -> dict[str, Any]:
        """What resuming needs besides tensors."""
        return {
            "step": self.step,
            "logged_step": self.logged_step,
            "is_evaluated": self.is_evaluated,
            "best_score": self.best_score,
            "samples": len(self.data),
        }

    def resume(self, *, kind: str) -> None:
        """Continue from ``last``: restores everything to the state at its step.

        kind: of model, as in ``read_checkpoint``. Raises CheckpointError if there is nothing to resume, it does not fit the
        module, or it was trained on other data.
        """
        directory = find_checkpoint(self.output_dir / "checkpoints" / "last")
        description, weights = read_checkpoint(directory, kind=kind)
        state = read_json(directory / f"{STATE}.json")
        if missing := {"files", "step", "best_score"} - state.keys():
            raise CheckpointError(f"{directory / STATE}.json lacks {sorted(missing)}; copy the checkpoint again")
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
            self.module.load_state_dict({migrate_weight_name(name, version): value for name, value in live.items()})
            restore_optimizer(self.optimizer, tensors)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{directory} does not fit this training run: {error}") from error
        self.step, self.best_score = state["step"], state["best_score"]
        self.is_evaluated = state.get("is_evaluated", True)
        self.logged_step = state.get("logged_step", self.step - self.step % self.config.log_every)
        self.ema.num_updates = math.ceil(self.step / AVERAGE_EVERY)
        if self.accelerator.is_main_process:  # it is the sum over all processes
            self.loss_sum = tensors["loss_sum"].to(self.accelerator.device)


def micro_batch(batch: Mapping[str, Tensor], index: int, count: int) -> dict[str, Tensor]:
    """The rows of one of ``count`` equal parts of every tensor."""
    return {name: values.chunk(count)[index] for name, values in batch.items()}
