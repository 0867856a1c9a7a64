"""Several processes follow the curve of one; batches that they cannot share are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.train import Trainer
from tests.policy.small_trainers import (
    CONFIG,
    SHARED,
    checkpoint_tensors,
    make_policy,
    make_trainer,
    make_windows,
    untimed_metrics,
)

PARALLEL = """
import runpy, sys
from pathlib import Path
trainers = runpy.run_path(sys.argv[1])
trainer = trainers["make_trainer"](Path(sys.argv[2]), trainers["SHARED"])
assert trainer.accelerator.num_processes == 2
trainer.run()
"""
TRAINERS = Path(__file__).with_name("small_trainers.py")


def test_two_processes_follow_the_curve_of_one(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PARALLEL)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(tmp_path / "script.py", TRAINERS, tmp_path / "two"),
        ],
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
    )
    make_trainer(tmp_path / "one", SHARED).run()
    one, two = untimed_metrics(tmp_path / "one"), untimed_metrics(tmp_path / "two")
    assert [entry.keys() for entry in one] == [entry.keys() for entry in two]
    assert sum("loss" in entry for entry in one) == SHARED.steps
    for expected, got in zip(one, two, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)
    weights = checkpoint_tensors(tmp_path / "one")
    for name, value in checkpoint_tensors(tmp_path / "two").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-5)


def test_batches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    class FiveProcesses:
        num_processes = 5

    with pytest.raises(ConfigurationError, match="batch_size=8 cannot be shared evenly by 5 processes"):
        Trainer(
            make_policy(),
            make_windows(),
            CONFIG,
            output_dir=tmp_path,
            accelerator=FiveProcesses(),
        )
