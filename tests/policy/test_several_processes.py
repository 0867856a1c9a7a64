"""Several processes follow the curve of one; batches that they cannot split evenly are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.training.trainer import Trainer
from tests.policy import small_trainers
from tests.policy.small_trainers import (
    CONFIG,
    SHARED,
    checkpoint_tensors,
    make_policy,
    make_windows,
    untimed_metrics,
)

PARALLEL = """
import runpy, sys
from pathlib import Path
trainers = runpy.run_path(sys.argv[1])
make = trainers[sys.argv[3]]
trainer = make(Path(sys.argv[2]))
assert trainer.accelerator.num_processes == 2
if len(sys.argv) > 4:
    trainers["run_to"](trainer, int(sys.argv[4]))
    trainer = make(Path(sys.argv[2]))
    trainer.resume(kind=trainers["KIND"])
trainer.run()
"""
TRAINERS = Path(__file__).with_name("small_trainers.py")


@pytest.mark.parametrize(
    ("make", "interrupted_at"),
    [("make_shared", ()), ("make_shared_in_parts", ("7",)), ("make_coupled", ())],
    ids=["whole", "in parts, resumed between two lines of the log", "noise paired with data"],
)
def test_two_processes_follow_the_curve_of_one(tmp_path: Path, make: str, interrupted_at: tuple[str, ...]) -> None:
    (tmp_path / "script.py").write_text(PARALLEL)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *map(str, (tmp_path / "script.py", TRAINERS, tmp_path / "two", make, *interrupted_at)),
        ],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
    getattr(small_trainers, make)(tmp_path / "one").run()
    one, two = untimed_metrics(tmp_path / "one"), untimed_metrics(tmp_path / "two")
    assert [entry.keys() for entry in one] == [entry.keys() for entry in two]
    assert sum("loss" in entry for entry in one) == (5 if interrupted_at else SHARED.steps)
    for expected, got in zip(one, two, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
    weights = checkpoint_tensors(tmp_path / "one")
    for name, value in checkpoint_tensors(tmp_path / "two").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-5)


def test_batches_that_cannot_be_split_evenly_are_refused(tmp_path: Path) -> None:
    class FiveProcesses:
        num_processes = 5

    with pytest.raises(ConfigurationError, match="batch_size=8 cannot be split evenly between 5 processes"):
        Trainer(
            make_policy(),
            make_windows(),
            CONFIG,
            output_dir=tmp_path,
            accelerator=FiveProcesses(),
        )
