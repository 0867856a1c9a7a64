"""Memory of Push-T state training, summed over its processes (proportional set size, sampled every second).

usage: python benchmarks/training_memory.py DATASET_PATH [--steps 300]

The run evaluates in simulation and writes checkpoints, like a long one. Target: at most 1.5 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import psutil


def main(dataset: Path, steps: int) -> None:
    """Print the peak."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"training.steps={steps}", f"training.evaluate_every={steps // 2}", f"output_dir={folder}/run"]
        process = subprocess.Popen(["flowchunk", "train", "task=pusht_state", f"dataset.path={dataset}", *options])
        peak = 0
        while process.poll() is None:
            family = [psutil.Process(process.pid)]
            family += family[0].children(recursive=True)
            peak = max(peak, sum(_memory(member) for member in family))
            time.sleep(1.0)
    if process.returncode:
        raise SystemExit(process.returncode)
    print(f"peak memory {peak / 1e9:.2f} GB (target <= 1.5 GB)")


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    main(parser.parse_args().dataset, parser.parse_args().steps)
