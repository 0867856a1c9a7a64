"""Where the time of a training step goes, for any options of `flowchunk train`.

usage: python benchmarks/step_profile.py OUTPUT_DIR task=TASK dataset.path=PATH [KEY=VALUE ...] [--steps 20]

Trains up to the first step as the command does, then times steps under torch's profiler, one thread. Prints milliseconds of
processor time per step by kind of operation, with their shares; what is left of the step's time is Python's.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from flowchunk.cli.main import main as flowchunk
from flowchunk.policy.training.trainer import Trainer

WARM_UP = 5
KINDS = {
    "convolutions": ("convolution", "conv2d"),
    "matrix products": ("mm", "linear", "matmul", "bmm"),
    "random numbers": ("rand", "normal_", "uniform", "dirichlet"),
    "normalization": ("norm",),
    "activations": ("silu", "gelu", "sigmoid", "softmax", "tanh"),
    "optimizer": ("adam", "optimizer", "lerp", "foreach"),
    "reading batches": ("index", "gather", "flip"),
    "copies and concatenation": ("copy", "cat", "to_copy", "clone", "contiguous", "stack", "fill", "zero", "empty"),
}
"""Words in the names of torch's operations, the first match counts."""


def kind_of(name: str) -> str:
    """The kind of an operation by its name, such as ``aten::addmm``."""
    plain = name.lower().rpartition("::")[2]
    return next((kind for kind, words in KINDS.items() if any(word in plain for word in words)), "other elementwise")


def profile_steps(trainer: Trainer, steps: int) -> None:
    """In place of ``Trainer.run``: print the table."""
    for _ in range(WARM_UP):
        trainer.train_step()
    started, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
    wall, plain = (1000 * (time.perf_counter() - started) / steps, 1000 * (time.process_time() - processor) / steps)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            trainer.train_step()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1000 / steps
    total = sum(times.values())
    print(f"a step: {plain:.1f} ms of processor time, {wall:.1f} ms on the clock; operations {total:.1f} ms\n")
    print("| part | ms | share |\n|---|---|---|")
    for kind, milliseconds in times.most_common():
        print(f"| {kind} | {milliseconds:.1f} | {milliseconds / total:.0%} |")
    raise SystemExit  # there is no policy to evaluate


def main() -> None:
    """Profile the training that the options describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir")
    parser.add_argument("options", nargs="+")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with patch.object(Trainer, "run", lambda trainer: profile_steps(trainer, given.steps)):
        flowchunk(["train", f"output_dir={given.output_dir}", "evaluation.episodes=0", *given.options])


if __name__ == "__main__":
    main()
