"""What the switches of hardware=gpu are worth on a CUDA GPU: Push-T from images, ResNet-18, batches of 128.

usage: python benchmarks/gpu_training.py DATASET_PATH [--steps 200]

Prints milliseconds per step of the preset on a batch that is ready, with the preparation of batches, and without each of its
switches, with the mean loss of these steps; whether a step waits for the GPU (it may not: torch raises at the first wait);
from a profile, for how much of the time the GPU computes, and how much of the preparation of batches overlaps with a step;
and by how much a run that was interrupted and resumed differs from an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.symmetry import IMAGE_TRANSFORMS, Symmetry, ValueTransform
from flowchunk.envs.contract import specs_of
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import KIND, ChunkPolicy
from flowchunk.policy.demonstrations import DatasetOptions, load_demonstrations
from flowchunk.policy.fitting import new_policy
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run import make_accelerator
from flowchunk.policy.training.trainer import Evaluate, Trainer

PRESET = TrainingConfig(
    steps=10**6,
    checkpoint_every=10**6,
    evaluate_every=10**6,
    batch_size=128,
    learning_rate=3e-4,
    precision="bf16",
    matmul_precision="high",
    channels_last=True,
    compile=True,
    cuda_graphs=True,
)
"""As in ``configs/hardware/gpu.yaml``."""
POLICY = PolicyConfig(
    n_action_steps=4,
    relative_to=("agent_position.agent_x", "agent_position.agent_y"),
    vision="resnet18",
    vision_options={"image_steps": 1},
)
"""As in ``configs/experiment/pusht_image.yaml``."""
VARIANTS: dict[str, dict[str, Any]] = {
    "preset": {},
    "without prefetch": {"prefetch": False},
    "without cuda_graphs": {"cuda_graphs": False},
    "without compile": {"compile": False},
    "without cuda_graphs and channels_last": {"cuda_graphs": False, "channels_last": False},
    "without bf16": {"precision": "fp32"},
    "without TF32": {"matmul_precision": "highest"},
}


class Bench:
    """Trainers of the same policy on the same images."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(path)
        if "image" not in self.store.keys:
            self.store = Store.open(path, sources={"image": "img", "agent_position": "state[:2]"})
        env = environment_maker("flowchunk/PushT-v1", {"observation": "image"})()
        observation_spec, action_spec = specs_of(env)
        env.close()
        self.specs = observation_spec.cropped((84, 84)), action_spec
        mirror = ValueTransform(order=(1, 0), sign=(-1.0, -1.0), offset=(512.0, 512.0))
        images = {"image": IMAGE_TRANSFORMS["anti_transpose"]}
        self.options = DatasetOptions(symmetry=Symmetry({"agent_position": mirror, "action": mirror}, images))
        self.data = load_demonstrations(
            self.store,
            self.specs,
            self.options,
            observation_steps=POLICY.observation_steps,
            horizon=POLICY.horizon,
            seed=0,
            device="cuda",
        )

    def trainer(self, config: TrainingConfig, name: str = "run", evaluate: Evaluate | None = None) -> Trainer:
        """A trainer of a new policy; the same one for the same arguments."""
        torch._dynamo.reset()
        torch.set_float32_matmul_precision(config.matmul_precision)
        accelerator = make_accelerator("cuda", precision=config.precision)
        policy = new_policy(self.store, POLICY, self.specs, self.options, self.data, seed=0)
        return Trainer(
            policy,
            self.data.training,
            config,
            output_dir=self.folder / name,
            accelerator=accelerator,
            evaluate=evaluate,
        )


def milliseconds_per_step(trainer: Trainer, steps: int, *, warmup: int = 20, is_prepared: bool = False) -> float:
    """Mean time of a step, with batches prepared as the configuration says, or of one batch that is prepared."""
    with ready_batch(trainer) if is_prepared else trainer.prefetching():
        for _ in range(warmup):
            trainer.train_step()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            trainer.train_step()
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / steps


@contextmanager
def ready_batch(trainer: Trainer) -> Iterator[None]:
    """Train on the same batch in every step, which costs nothing to prepare."""
    batch = trainer.local_batch(0)
    trainer.load_batch = lambda step: batch
    try:
        yield
    finally:
        trainer.load_batch = trainer.local_batch


def require_no_waiting(trainer: Trainer, steps: int = 20) -> None:
    """Raise RuntimeError at the first synchronisation of host and GPU in a training step."""
    with ready_batch(trainer):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(steps):
                trainer.train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def overlap(trainer: Trainer, steps: int = 30) -> tuple[float, float]:
    """Fraction of the time in which the GPU computes; fraction of the other streams' time that lies within the training's."""
    with trainer.prefetching():
        for _ in range(5):
            trainer.train_step()
        torch.cuda.synchronize()
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            for _ in range(steps):
                trainer.train_step()
            torch.cuda.synchronize()
    trace = trainer.output_dir / "trace.json"
    trace.parent.mkdir(parents=True, exist_ok=True)
    profile.export_chrome_trace(str(trace))
    streams: dict[int, list[tuple[float, float]]] = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            streams.setdefault(event["args"]["stream"], []).append((event["ts"], event["ts"] + event["dur"]))
    ordered = sorted((merged(intervals) for intervals in streams.values()), key=total, reverse=True)
    training, others = ordered[0], merged(interval for intervals in ordered[1:] for interval in intervals)
    everything = merged([*training, *others])
    span = everything[-1][1] - everything[0][0]
    together = total(training) + total(others) - total(everything)
    return total(everything) / span, together / total(others) if others else float("nan")


def merged(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, as disjoint ones in order."""
    union: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((start, end))
    return union


def total(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def resume_error(bench: Bench) -> float:
    """The largest difference of a weight between 8 steps, and 8 steps that were interrupted after 4 and resumed."""
    config = replace(PRESET, steps=8, evaluate_every=4)
    straight = bench.trainer(config, "straight", evaluate=lambda policy: {"score": 0.0})
    straight.run()
    with suppress(InterruptedError):
        bench.trainer(config, "interrupted", evaluate=interrupt).run()
    resumed = bench.trainer(config, "interrupted", evaluate=lambda policy: {"score": 0.0})
    resumed.resume(kind=KIND)
    assert resumed.step == 4
    resumed.run()
    pairs = zip(straight.module.parameters(), resumed.module.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def interrupt(policy: ChunkPolicy) -> dict[str, float]:
    """An evaluation that is interrupted; the checkpoint of its step is there by then."""
    raise InterruptedError


def main(path: Path, steps: int) -> None:
    """Print the figures."""
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU, and torch finds none")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(path, Path(folder))
        trainer = bench.trainer(PRESET)
        ready = milliseconds_per_step(trainer, steps, is_prepared=True)
        print(f"preset, on a batch that is ready: {ready:.2f} ms per step", flush=True)
        require_no_waiting(trainer)
        print("no step waits for the GPU", flush=True)
        busy, hidden = overlap(trainer)
        print(
            f"the GPU computes {busy:.0%} of the time; {hidden:.0%} of preparing a batch overlaps with a step",
            flush=True,
        )
        print(f"resumed against uninterrupted: weights differ by at most {resume_error(bench):.1e}", flush=True)
        for name, changes in VARIANTS.items():
            trainer = bench.trainer(replace(PRESET, **changes))
            duration = milliseconds_per_step(trainer, steps)
            loss = float(trainer.loss_sum) / trainer.step
            print(f"{name}: {duration:.2f} ms per step, mean loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    main(options.dataset, options.steps)
