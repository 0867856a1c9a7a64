"""Figures on the seeds that chose a checkpoint are marked; on all others they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowchunk.cli.eval import read_training
from flowchunk.cli.main import main
from flowchunk.cli.selection_seeds import overlaps_selection, selection_seeds
from flowchunk.envs.rollout import REPORT_SEED, SELECTION_SEED

CHOSEN = {"env_id": "flowchunk/PushT-v1", "evaluation": {"seed": 500, "episodes": 10}}


@pytest.mark.parametrize(
    ("training", "seeds"),
    [
        (CHOSEN, range(500, 510)),
        ({**CHOSEN, "evaluation": {"seed": 500, "episodes": 0}}, range(0)),
        ({"env_id": "flowchunk/PushT-v1"}, range(SELECTION_SEED, SELECTION_SEED + 50)),
        ({"env_id": None}, range(0)),
        ({}, range(0)),
    ],
)
def test_a_checkpoint_says_what_chose_it(training: dict[str, Any], seeds: range) -> None:
    assert selection_seeds(training) == seeds


@pytest.mark.parametrize(
    ("first", "number", "overlaps"), [(490, 10, False), (490, 11, True), (509, 1, True), (510, 5, False), (0, 0, False)]
)
def test_a_single_shared_seed_is_an_overlap(first: int, number: int, overlaps: bool) -> None:
    assert overlaps_selection(CHOSEN, range(first, first + number)) is overlaps


def test_the_default_seeds_never_meet() -> None:
    default = {"env_id": "flowchunk/PushT-v1"}
    assert not overlaps_selection(default, range(REPORT_SEED, SELECTION_SEED))


@pytest.fixture(scope="module")
def run_chosen_in_simulation(
    pusht_store: Path, tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]
) -> Path:
    run = tmp_path_factory.mktemp("runs") / "chosen"
    command = ["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={run}", *tiny]
    assert main([*command, "evaluation.episodes=2", "evaluation.seed=500", "training.evaluate_every=6"]) == 0
    return run


@pytest.mark.parametrize(("seed", "overlaps"), [(499, True), (501, True), (502, False)])
def test_eval_marks_and_warns(
    seed: int, overlaps: bool, run_chosen_in_simulation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_chosen_in_simulation
    assert read_training(run / "checkpoints" / "best")["evaluation"] == {"seed": 500, "episodes": 2}
    assert main(["eval", str(run), f"seed={seed}", "episodes=2", "video=0", f"output_dir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["seeds_overlap_selection"] is overlaps
    assert ("was chosen on some of these seeds" in capsys.readouterr().out) == overlaps


def test_a_run_that_nothing_in_simulation_chose_is_not_marked(trained_run: Path, tmp_path: Path) -> None:
    command = ["eval", str(trained_run), f"seed={SELECTION_SEED}", "episodes=1", "video=0", f"output_dir={tmp_path}"]
    assert main(command) == 0
    assert not json.loads((tmp_path / "eval.json").read_text())["seeds_overlap_selection"]
