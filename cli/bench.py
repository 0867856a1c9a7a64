"""flowchunk bench: how long a checkpoint takes to predict, and which delays it can act with.

usage: flowchunk bench latency CHECKPOINT [KEY=VALUE ...]

  CHECKPOINT                       a run of a policy (its best checkpoint, otherwise its last) or a
                                   checkpoint; no environment is needed
  nfe=[1,2,4]                      numbers of network evaluations; invalid ones are left out
  n=100                            calls of each kind
  solver=NAME                      another solver than the checkpoint's
  device=cpu|auto|cuda|cuda:N|mps  where the policy runs
  output_dir=DIR                   default: RUN/bench

Measures, at batch size 1, on one thread and on all, with random observations within the range of
the training data: encoding the observation, sampling, and the whole chunk, plain and by each way to
continue the chunk that is being executed (prefix_method). All kinds of calls alternate.

Prints the median, 95th and 99th percentile; the ratio to a plain chunk; the delay, in control steps
at the policy's rate, that the 95th percentile takes; and the n_action_steps that may be executed of
a chunk: at least the delay, and at most the horizon without it. Writes DIR/latency.json.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from flowchunk.cli.eval import load_policy
from flowchunk.cli.options import read_options, take_checkpoint
from flowchunk.cli.reports import print_table, print_written, table_of, write_report
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import find_checkpoint, find_run
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.latency import interleaved_ms, synthetic_observation

PERCENTILES = (50, 95, 99)
WARM_UP = 5
PLAIN = "plain"
SHOW_PROGRESS_FROM = 2.0
"""Seconds."""
Row = dict[str, Any]


def run(arguments: list[str]) -> None:
    """Measure with command-line arguments."""
    if arguments[:1] != ["latency"]:
        raise ConfigurationError("usage: flowchunk bench latency CHECKPOINT [KEY=VALUE ...]")
    checkpoint, overrides = take_checkpoint("bench", arguments[1:])
    bench_latency(checkpoint, read_options("bench", overrides))


def bench_latency(checkpoint: str | Path, options: Mapping[str, Any]) -> Path:
    """Measure with the options of ``schemas.BENCH``; returns the path of ``latency.json``.

    Raises ConfigurationError for options that cannot be used, CheckpointError if the policy cannot be read.
    """
    directory = find_checkpoint(checkpoint)
    if options["n"] < 1:
        raise ConfigurationError(f"n={options['n']} must be at least 1")
    policy, console = load_policy(directory, options), Console()
    numbers, refused = _admitted(policy, options["nfe"])
    for reason in refused.values():
        console.print(f"left out: {reason}", style="yellow", markup=False, soft_wrap=True)
    output_dir = Path(options["output_dir"] or find_run(directory) / "bench").expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    thread_counts = sorted({1, torch.get_num_threads()})
    report = {
        "checkpoint": str(directory),
        "n": options["n"],
        "refused": refused,
        **_conditions(policy),
        "threads": _measure(policy, numbers, thread_counts, n=options["n"], console=console),
    }
    file = output_dir / "latency.json"
    write_report(file, report)
    for entry in report["threads"]:
        _print_tables(console, report, entry)
    print_written(console, file)
    return file


def _admitted(policy: ChunkPolicy, numbers: Sequence[Any]) -> tuple[list[int], dict[int, str]]:
    """The numbers of network evaluations that the policy takes, and the reasons against the others."""
    if not numbers or not all(type(nfe) is int and nfe >= 1 for nfe in numbers):
        raise ConfigurationError(
            f"nfe={list(numbers)}: expected a list of whole numbers of at least 1, such as [1,2,4]"
        )
    refused = {}
    for nfe in numbers:
        try:
            policy.with_sampling(nfe=nfe)
        except ConfigurationError as error:
            refused[nfe] = str(error)
    admitted = [nfe for nfe in dict.fromkeys(numbers) if nfe not in refused]
    if not admitted:
        raise ConfigurationError(f"none of nfe={list(numbers)} is valid: {refused[numbers[0]]}")
    return admitted, refused


def _conditions(policy: ChunkPolicy) -> Row:
    return {
        "control_hz": policy.action_spec.control_hz,
        "horizon": policy.config.horizon,
        "n_action_steps": policy.config.n_action_steps,
        "prefix_max": policy.config.prefix_max,
        "network": policy.config.network,
        "solver": policy.objective.solver_name(policy.config.sampling),
        "device": str(policy.model.device),
        "versions": {name: version(name) for name in ("flowchunk", "torch", "numpy")},
    }


def _measure(
    policy: ChunkPolicy, numbers: Sequence[int], thread_counts: Sequence[int], *, n: int, console: Console
) -> list[Row]:
    """An entry for each number of threads, with a row for each kind of call and number of network evaluations."""
    calls = {nfe: _calls(policy, nfe) for nfe in numbers}
    rounds = len(thread_counts) * len(numbers) * (WARM_UP + n)
    is_short = rounds * _seconds_of_round(calls[max(numbers)]) < SHOW_PROGRESS_FROM
    entries = []
    with Progress(console=console, disable=is_short) as progress:
        task = progress.add_task("measuring", total=rounds)
        advance = partial(progress.advance, task)
        for threads in thread_counts:
            rows = []
            for nfe in numbers:
                times = interleaved_ms(calls[nfe], rounds=n, warm_up=WARM_UP, threads=threads, advance=advance)
                rows += [_row(policy, name, nfe, times) for name in times]
            entries.append({"threads": threads, "rows": rows})
    return entries


def _calls(policy: ChunkPolicy, nfe: int) -> dict[str, Callable[[int], object]]:
    """What is measured, by name: the parts of a plain chunk, and whole chunks."""
    observation = synthetic_observation(policy)
    tensors = {key: torch.as_tensor(value, device=policy.model.device) for key, value in observation.items()}
    sampling = policy.with_sampling(nfe=nfe).config.sampling
    with torch.inference_mode():
        condition = policy.encode(policy.with_estimates(tensors))

    @torch.inference_mode()
    def encode(seed: int) -> object:
        return policy.encode(policy.with_estimates(tensors)).cpu()  # waits for the device

    @torch.inference_mode()
    def sample(seed: int) -> object:
        generator = torch.Generator().manual_seed(seed)
        return policy.model.sample(condition, sampling=sampling, generator=generator).cpu()

    def chunk(seed: int, *, policy: ChunkPolicy = policy, **old_chunk: Any) -> object:
        return policy.predict_chunk(observation, nfe=nfe, seed=seed, **old_chunk)

    planned = policy.predict_chunk(observation, nfe=nfe, seed=0)[:, policy.config.n_action_steps :]
    continued = {}
    for method in policy.prefix_methods if planned.shape[1] else ():
        bound = policy.with_sampling(prefix_method=method)
        committed = min(bound.longest_prefix, max(1, planned.shape[1] // 2))
        continued[method] = partial(chunk, policy=bound, prefix=planned[:, :committed], tail=planned[:, committed:])
    return {"encoding": encode, "sampling": sample, PLAIN: chunk, **continued}


def _seconds_of_round(calls: Mapping[str, Callable[[int], object]]) -> float:
    for call in calls.values():  # once before, because the first call of each is slow
        call(0)
    started = time.perf_counter()
    for call in calls.values():
        call(0)
    return time.perf_counter() - started


def _row(policy: ChunkPolicy, name: str, nfe: int, times: Mapping[str, np.ndarray]) -> Row:
    percentiles = {f"p{q}": float(np.percentile(times[name], q)) for q in PERCENTILES}
    row = {"call": name, "nfe": nfe, **percentiles}
    if name in ("encoding", "sampling"):
        return row
    longest = policy.config.horizon
    if name != PLAIN:
        longest = policy.with_sampling(prefix_method=name).longest_prefix
    delay = delay_steps(percentiles["p95"], policy.action_spec.control_hz)
    ratio = float(np.median(times[name] / times[PLAIN]))
    admissible = admissible_action_steps(delay, policy.config.horizon, longest_delay=longest)
    return {**row, "ratio": ratio, "longest_delay": longest, "delay": delay, "n_action_steps": admissible}


def delay_steps(milliseconds: float, control_hz: float) -> int:
    """The control steps that begin while this time passes: actions of the old chunk that are executed meanwhile."""
    return math.ceil(milliseconds / 1000 * control_hz)


def admissible_action_steps(delay: int, horizon: int, *, longest_delay: int) -> list[int] | None:
    """The smallest and the largest n_action_steps with which chunks of this horizon can be continued; None if none can.

    delay <= n_action_steps, because the next chunk is asked for after the last one has come; n_action_steps <= horizon -
    delay, because the old chunk must last until the new one comes. longest_delay: that can be continued.
    """
    return [delay, horizon - delay] if delay <= longest_delay and 2 * delay <= horizon else None


def _print_tables(console: Console, report: Row, entry: Row) -> None:
    table = table_of("call", "nfe", "p50 / p95 / p99 ms", "ratio", "delay", "executed")
    for row in entry["rows"]:
        times = " / ".join(f"{row[f'p{q}']:.3g}" for q in PERCENTILES)
        if "ratio" in row:
            admissible = "none" if row["n_action_steps"] is None else "{} to {}".format(*row["n_action_steps"])
            table.add_row(row["call"], str(row["nfe"]), times, f"{row['ratio']:.2f}", str(row["delay"]), admissible)
        elif row["call"] != "encoding" or row is entry["rows"][0]:  # the same for every number of evaluations
            table.add_row(f"({row['call']})", str(row["nfe"]), times, "", "", "")
    threads = "one thread" if entry["threads"] == 1 else f"{entry['threads']} threads"
    title = f"{report['checkpoint']}, {report['device']}, {threads}; delay and executed: steps of {report['control_hz']:g} Hz"
    print_table(console, title, table)
