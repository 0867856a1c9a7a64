"""flowchunk bench latency: from a checkpoint alone, what a chunk costs and which delays it leaves."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.cli import bench
from flowchunk.cli.bench import admissible_action_steps, delay_steps
from flowchunk.cli.main import main
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.evaluation.latency import interleaved_ms, latency_ms, synthetic_observation, torch_threads
from flowchunk.policy.policy_config import PolicyConfig
from tests.policy.small_policies import ACTION, HORIZON, make_policy

UNTRAINED = ["guided", "guided_vjp", "noise_inversion"]


def measured(checkpoint: Path, folder: Path, *options: str) -> dict[str, Any]:
    assert main(["bench", "latency", str(checkpoint), f"output_dir={folder}", "n=3", *options]) == 0
    content: dict[str, Any] = json.loads((folder / "latency.json").read_text())
    return content


@pytest.fixture
def several_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_a_checkpoint_alone_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(bench, "SHOW_PROGRESS_FROM", 1e6)
    make_policy(prefix_max=2, n_action_steps=4).save(tmp_path / "policy")
    content = measured(tmp_path / "policy", tmp_path / "out", "nfe=[1,4,4]")
    assert (content["control_hz"], content["horizon"], content["n_action_steps"]) == (10.0, HORIZON, 4)
    assert (content["prefix_max"], content["network"], content["solver"], content["n"]) == (2, "mlp", "euler", 3)
    assert (content["device"], content["refused"]) == ("cpu", {})
    assert [entry["threads"] for entry in content["threads"]] == [1, 2]
    calls = ["encoding", "sampling", "plain", "trained", *UNTRAINED]
    for entry in content["threads"]:
        assert [(row["nfe"], row["call"]) for row in entry["rows"]] == [(nfe, name) for nfe in (1, 4) for name in calls]
        for row in entry["rows"]:
            assert 0 < row["p50"] <= row["p95"] <= row["p99"]
            if row["call"] in ("encoding", "sampling"):
                assert row.keys() == {"call", "nfe", "p50", "p95", "p99"}
                continue
            assert row["delay"] == delay_steps(row["p95"], 10)
            longest = {"plain": HORIZON, "trained": 2}.get(row["call"], HORIZON - 1)
            assert row["longest_delay"] == longest
            assert row["n_action_steps"] == admissible_action_steps(row["delay"], HORIZON, longest_delay=longest)
            assert row["ratio"] == 1 or row["call"] != "plain"
    printed = capsys.readouterr().out
    assert "one thread" in printed
    assert "2 threads" in printed
    assert printed.count("(encoding)") == 2
    assert "measuring" not in printed
    for row in content["threads"][0]["rows"]:
        if "ratio" in row:
            assert f"{row['p50']:.3g} / {row['p95']:.3g} / {row['p99']:.3g}" in printed


def test_more_evaluations_take_longer(tmp_path: Path) -> None:
    make_policy(n_action_steps=4).save(tmp_path / "policy")
    rows = measured(tmp_path / "policy", tmp_path, "nfe=[1,20]", "n=10")["threads"][0]["rows"]
    p50 = {(row["call"], row["nfe"]): row["p50"] for row in rows}
    for name in ("sampling", "plain", "guided", "noise_inversion"):
        assert p50[name, 20] > 3 * p50[name, 1]
    ratio = {row["call"]: row["ratio"] for row in rows if row["nfe"] == 20 and "ratio" in row}
    assert 0.7 < ratio["guided"] < ratio["guided_vjp"]
    assert 1.5 < ratio["noise_inversion"] < 6


def test_a_run_without_prefixes_is_measured_beside_it(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SHOW_PROGRESS_FROM", 1e-4)
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    assert main(["bench", "latency", str(run), "n=1", "nfe=[1]"]) == 0
    content = json.loads((run / "bench" / "latency.json").read_text())
    rows = content["threads"][0]["rows"]
    assert content["checkpoint"] == str(run / "checkpoints" / "best")
    assert [row["call"] for row in rows] == ["encoding", "sampling", "plain", *UNTRAINED]
    assert "measuring" in capsys.readouterr().out


def test_images(tmp_path: Path) -> None:
    fields = {
        "camera": ObservationField((24, 32, 3), camera="front"),
        "state": ObservationField((3,)),
    }
    from_state = make_policy()
    config = PolicyConfig(
        horizon=HORIZON,
        n_action_steps=4,
        network_options={"width": 16, "blocks": 1},
        vision="small_conv",
        vision_options={"widths": (8, 8, 8, 8)},
    )
    policy = ChunkPolicy(config, ObservationSpec(fields), ACTION, from_state.normalizer).eval()
    policy.save(tmp_path / "policy")
    rows = measured(tmp_path / "policy", tmp_path, "nfe=[1]")["threads"][0]["rows"]
    assert [row["call"] for row in rows] == ["encoding", "sampling", "plain", *UNTRAINED]
    observation = synthetic_observation(policy)
    assert observation["camera"].shape == (1, 2, 24, 32, 3)
    assert observation["camera"].dtype == np.uint8
    assert observation["camera"].std() > 60


def test_a_policy_that_cannot_continue_chunks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_policy(objective="regression").save(tmp_path / "policy")
    content = measured(tmp_path / "policy", tmp_path)
    assert content["refused"].keys() == {"2", "4"}
    assert "left out: nfe=4: a model trained with objective=regression admits only 1" in capsys.readouterr().out
    assert [row["call"] for row in content["threads"][0]["rows"]] == ["encoding", "sampling", "plain"]


def test_a_policy_that_executes_whole_chunks_has_nothing_to_continue(tmp_path: Path) -> None:
    make_policy(n_action_steps=HORIZON).save(tmp_path / "policy")
    rows = measured(tmp_path / "policy", tmp_path, "nfe=[1]")["threads"][0]["rows"]
    assert [row["call"] for row in rows] == ["encoding", "sampling", "plain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: flowchunk bench latency CHECKPOINT"),
        (["speed", "RUN"], "usage: flowchunk bench latency CHECKPOINT"),
        (["latency"], "give the checkpoint first"),
        (["latency", "RUN", "n=0"], "n=0 must be at least 1"),
        (["latency", "RUN", "nfe=[]"], "expected a list of whole numbers of at least 1"),
        (["latency", "RUN", "nfe=[1,0]"], "expected a list of whole numbers of at least 1"),
        (["latency", "RUN", "nfe=[1,3]", "solver=heun"], "none of nfe=[1, 3] is valid: nfe=1: heun"),
        (["latency", "RUN", "solver=flow_map"], "solver=flow_map needs objective=flow_map"),
        (["latency", "RUN", "episodes=3"], "episodes"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], message: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(trained_run) if argument == "RUN" else argument for argument in arguments]
    out = [f"output_dir={tmp_path / 'out'}"] if "RUN" in arguments else []
    assert main(["bench", *given, *out]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_models_of_other_data_are_refused(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "latency", str(toy_run)]) == 1
    assert "generative_model" in capsys.readouterr().err


# Delays.


@pytest.mark.parametrize(("milliseconds", "hz", "steps"), [(12, 10, 1), (100, 10, 1), (101, 10, 2), (49, 50, 3)])
def test_delays_are_rounded_up(milliseconds: float, hz: float, steps: int) -> None:
    assert delay_steps(milliseconds, hz) == steps


@pytest.mark.parametrize(
    ("delay", "longest", "expected"),
    [(1, 16, [1, 15]), (4, 4, [4, 12]), (5, 4, None), (8, 16, [8, 8]), (9, 16, None)],
)
def test_the_executed_actions_that_a_delay_leaves(delay: int, longest: int, expected: list[int] | None) -> None:
    assert admissible_action_steps(delay, 16, longest_delay=longest) == expected


# Measuring.


def test_calls_alternate_on_the_threads_asked_for() -> None:
    made: list[tuple[str, int, int]] = []
    calls = {name: lambda number, name=name: made.append((name, number, torch.get_num_threads())) for name in "ab"}
    before, advanced = torch.get_num_threads(), []
    times = interleaved_ms(calls, rounds=2, warm_up=1, threads=2, advance=lambda: advanced.append(1))
    assert [(name, number) for name, number, _ in made] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert {threads for *_, threads in made} == {2}
    assert torch.get_num_threads() == before
    assert len(advanced) == 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all((values >= 0).all() for values in times.values())


def test_threads_are_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_warm_up_is_left_out() -> None:
    assert latency_ms(lambda number: time.sleep(0.02 * (number < 2)), calls=5, warm_up=2)["p95"] < 10


def test_observations_are_within_the_range_of_training() -> None:
    policy = make_policy()
    observation = synthetic_observation(policy, seed=3)
    assert {key: values.shape for key, values in observation.items()} == {"state": (1, 2, 3), "forces": (1, 2, 2, 2)}
    assert all(value == 0 for value in policy.out_of_range(observation).values())
    assert all(values.std() > 0 for values in observation.values())
    np.testing.assert_array_equal(synthetic_observation(policy, seed=3)["forces"], observation["forces"])
    policy.predict_chunk(observation)
