"""flowchunk compare with runs: what is tested and said, what is evaluated, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flowchunk.cli.main import main
from flowchunk.envs.rollout import rollout
from flowchunk.policy.evaluation.paired import mcnemar_p
from tests.cli.evaluations import REPORT, write_evaluation
from tests.cli.folders import contents
from tests.cli.test_compare import read

GOOD, MIDDLE, BAD = [1] * 36 + [0] * 4, [1] * 33 + [0] * 7, [1] * 8 + [0] * 32


def compare(folder: Path, *arguments: object) -> dict[str, Any]:
    assert main(["compare", *map(str, arguments), f"output_dir={folder / 'out'}"]) == 0
    content = json.loads((folder / "out" / "compare.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three evaluated runs, the best in the middle."""
    outcomes = {"bad": BAD, "good": GOOD, "middle": MIDDLE}
    return [write_evaluation(tmp_path / name, successes) for name, successes in outcomes.items()]


# What is said


def test_methods_are_ranked_and_tested_and_share_letters(runs: list[Path], tmp_path: Path) -> None:
    content = compare(tmp_path, *runs)
    assert [method["name"] for method in content["methods"]] == ["good", "middle", "bad"]
    assert [method["letters"] for method in content["methods"]] == ["a", "a", "b"]
    assert content["methods"][0]["success"] == 0.9
    p = {(pair["better"], pair["worse"]): pair["p_corrected"] for pair in content["pairs"]}
    assert p["good", "bad"] == pytest.approx(3 * mcnemar_p(28, 0))
    assert p["middle", "bad"] == pytest.approx(2 * mcnemar_p(25, 0))
    assert p["good", "middle"] == pytest.approx(mcnemar_p(3, 0))


def test_better_is_said_only_where_the_test_says_so(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(tmp_path, *runs)
    said = capsys.readouterr().out
    assert "good is better than bad (p < 0.001)" in said
    assert "middle is better than bad (p < 0.001)" in said
    assert said.count("is better than") == 2
    compare(tmp_path, *runs[1:])
    said = capsys.readouterr().out
    assert "is better than" not in said
    assert "no difference is significant at 0.05; flowchunk episodes-needed" in said


def test_the_table_shows_differences_to_the_best(runs: list[Path], tmp_path: Path) -> None:
    (best, middle, bad) = compare(tmp_path, *runs)["rows"]
    assert best == ["good", "1", "40", "0.900", "0.900", "0.769 to 0.960", "-", "-", "a"]
    assert middle[6].startswith("-0.075 (-0.")
    assert middle[7:] == ["0.250", "a"]
    assert bad[7:] == ["< 0.001", "b"]


def test_a_stricter_alpha_tells_fewer_apart(tmp_path: Path) -> None:
    a, b = write_evaluation(tmp_path / "a", [1] * 6 + [0] * 4), write_evaluation(tmp_path / "b", [0] * 10)
    assert compare(tmp_path, a, b)["pairs"][0]["is_different"]
    assert not compare(tmp_path, a, b, "alpha=0.01")["pairs"][0]["is_different"]


def test_scores_are_tested_on_request(tmp_path: Path) -> None:
    few, many = [0.5 + 0.01 * n for n in range(20)], [0.6 + 0.01 * n for n in range(20)]
    a, b = (write_evaluation(tmp_path / name, [0] * 20, s) for name, s in (("a", few), ("b", many)))
    assert not compare(tmp_path, a, b)["pairs"][0]["is_different"]
    content = compare(tmp_path, a, b, "measure=score")
    assert content["pairs"][0]["is_different"]
    assert content["pairs"][0]["better"] == "b"
    assert content["rows"][1][6].startswith("-0.100 (-0.1")
    assert "paired permutation test" in content["test"]


def test_the_page_needs_no_other_file_and_has_the_table(runs: list[Path], tmp_path: Path) -> None:
    content = compare(tmp_path, *runs)
    page = read(tmp_path / "out" / "compare.html")
    assert page.tables[0][1:] == content["rows"]
    assert [url[:22] for url in page.images] == ["data:image/png;base64,"]
    assert "http" not in (tmp_path / "out" / "compare.html").read_text()


def test_files_and_folders_of_evaluations_are_found_and_named(tmp_path: Path) -> None:
    first, second = (write_evaluation(tmp_path / name / "same", GOOD) for name in ("x", "y"))
    names = {method["name"] for method in compare(tmp_path, first / "eval" / "eval.json", f"other={second}")["methods"]}
    assert names == {"same", "other"}
    names = {method["name"] for method in compare(tmp_path, first / "eval", second)["methods"]}
    assert names == {str(first / "eval"), str(second)}, "the same names are told apart by their paths"


def test_results_on_hardware_are_compared_too(tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        run = write_evaluation(tmp_path / name, GOOD, robot="arm")
        report = json.loads((run / "eval" / "eval.json").read_text())
        for key in ("env_id", "env", "delay", "solver", "noise_scale", "step", "seeds_overlap_selection"):
            del report[key]
        (run / "robot").mkdir()
        (run / "robot" / "eval.json").write_text(json.dumps(report))
        reports.append(run / "robot")
    assert compare(tmp_path, f"a={reports[0]}", f"b={reports[1]}")["title"] == "arm, 40 episodes from seed 100000"


# Training seeds


def grouped(folder: Path, name: str, rates: Sequence[int]) -> str:
    runs = [write_evaluation(folder / f"{name}{n}", [1] * rate + [0] * (40 - rate)) for n, rate in enumerate(rates)]
    return f"{name}={','.join(map(str, runs))}"


def test_runs_of_one_method_are_one_row(tmp_path: Path) -> None:
    content = compare(tmp_path, grouped(tmp_path, "flow", [30, 32, 34]), grouped(tmp_path, "mip", [8, 10, 12]))
    assert [(method["name"], method["num_runs"]) for method in content["methods"]] == [("flow", 3), ("mip", 3)]
    assert content["methods"][0]["success"] == pytest.approx(32 / 40)
    assert content["pairs"][0]["is_different"]
    assert content["test"].startswith("hierarchical bootstrap")
    assert not content["warnings"]


def test_training_seeds_that_disagree_are_no_evidence(tmp_path: Path) -> None:
    """Of all episodes together, 60 of 120 against 90 would be: the training seeds decide more than the method."""
    content = compare(tmp_path, grouped(tmp_path, "flow", [0, 20, 40]), grouped(tmp_path, "mip", [10, 40, 40]))
    assert not content["pairs"][0]["is_different"]


def test_a_single_run_beside_several_is_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path, grouped(tmp_path, "flow", [30, 32]), grouped(tmp_path, "mip", [8]))
    assert "nothing is known of other training seeds" in capsys.readouterr().out


# Selection


def test_figures_on_selection_seeds_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_evaluation(tmp_path / "a", GOOD, seed=300_000, seeds_overlap_selection=True)
    b = write_evaluation(tmp_path / "b", BAD, seed=300_000)
    content = compare(tmp_path, a, b)
    assert [row[0] for row in content["rows"]] == ["a*", "b"]
    assert content["warnings"] == [next(line for line in capsys.readouterr().out.splitlines() if "too good" in line)]
    assert "too good" in (tmp_path / "out" / "compare.html").read_text()


def test_other_versions_of_the_simulator_are_pointed_out(tmp_path: Path) -> None:
    a = write_evaluation(tmp_path / "a", GOOD)
    b = write_evaluation(tmp_path / "b", GOOD, versions={"mujoco": "3.9.0", "gymnasium": "1.1"})
    assert compare(tmp_path, a, b)["warnings"] == ["evaluated with several versions of mujoco: 3.3.0, 3.9.0"]


# Evaluating what is missing


@pytest.fixture
def copies(trained_run: Path, tmp_path: Path) -> list[Path]:
    """Two copies of a trained run, which were never evaluated."""
    return [shutil.copytree(trained_run, tmp_path / name, ignore=shutil.ignore_patterns("eval")) for name in ("a", "b")]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The first seed and number of the episodes of each evaluation."""
    calls = []

    def spy(*arguments: Any, **options: Any) -> Any:
        calls.append((options["seed"], options["episodes"]))
        return rollout(*arguments, **options)

    monkeypatch.setattr("flowchunk.cli.eval.rollout", spy)
    return calls


def test_only_missing_episodes_are_evaluated_under_the_same_conditions(
    copies: list[Path], evaluated: list[tuple[int, int]], tmp_path: Path
) -> None:
    a, b = copies
    command = ["video=0", "num_envs=1", "nfe=2", "env.goal_pose=[200,300,0.5]", "seed=50"]
    assert main(["eval", str(a), "episodes=3", *command]) == main(["eval", str(b), "episodes=1", *command]) == 0
    evaluated.clear()
    compare(tmp_path, a, b, "episodes=3", "num_envs=1")
    assert evaluated == [(51, 2)]
    ours, theirs = (json.loads((run / "eval" / "eval.json").read_text()) for run in (a, b))
    for report in (ours, theirs):
        del report["checkpoint"], report["latency_ms"], report["env_steps_per_second"]
    assert ours == theirs, "the same policy: as if it had been evaluated at once"
    compare(tmp_path, a, b, "episodes=2")
    assert evaluated == [(51, 2)], "what is there is used"


def test_runs_that_were_never_evaluated_are(
    copies: list[Path], evaluated: list[tuple[int, int]], tmp_path: Path
) -> None:
    content = compare(tmp_path, *copies, "episodes=2", "seed=300000", "num_envs=2")
    assert evaluated == [(300_000, 2)] * 2
    assert (content["seed"], content["episodes"]) == (300_000, 2)
    assert content["pairs"][0]["success"]["mean"] == 0
    report = json.loads((copies[0] / "eval" / "eval.json").read_text())
    assert report.keys() - {"latency_ms", "env_steps_per_second", "success_ci95"} >= REPORT.keys()


def test_a_sequential_comparison_goes_on_while_nothing_is_decided(
    copies: list[Path], evaluated: list[tuple[int, int]], tmp_path: Path
) -> None:
    content = compare(tmp_path, *copies, "episodes=3", "stop=sequential", "round=2")
    assert evaluated == [(100_000, 2), (100_000, 2), (100_002, 1), (100_002, 1)]
    assert (content["episodes"], content["planned_episodes"], content["sequential"]) == (3, 3, True)
    assert any("saved no episodes" in line for line in content["findings"])


def test_a_sequential_comparison_stops_once_it_is_sure(tmp_path: Path) -> None:
    a, b = write_evaluation(tmp_path / "a", [1] * 100), write_evaluation(tmp_path / "b", [0] * 100)
    content = compare(tmp_path, a, b, "episodes=100", "stop=sequential", "round=3")
    assert content["episodes"] == 6
    assert (
        "stopped after 6: saved 94 of 100 planned episodes a run; the intervals do not allow for stopping"
        in content["findings"]
    )
    assert content["pairs"][0]["is_different"]
    assert content["test"].startswith("e-process")
    by_score = compare(tmp_path, a, b, "episodes=100", "stop=sequential", "round=1", "measure=score")
    assert by_score["episodes"] == 11  # 1.5 ** 10 / 2 >= 20, after a first pair on which nothing is staked


# What cannot be compared


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "pickplace_state"}, "task is pusht_state and pickplace_state"),
        ({"env_id": "Other-v0"}, "env_id is flowchunk/PushT-v1 and Other-v0"),
        ({"env": {"observation": "keypoints"}}, "env.observation is state and keypoints"),
        ({"env": {"observation": "state", "goal_pose": [1, 2, 3]}}, "env.goal_pose is None and [1, 2, 3]"),
        ({"delay": {"steps": 2}}, "delay.steps is 0 and 2"),
        ({"seed": 7}, "from seed 100000 and from seed 7"),
        ({"robot": "arm"}, "robot is None and arm"),
    ],
)
def test_runs_of_other_episodes_are_refused_by_name(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = write_evaluation(tmp_path / "a", GOOD), write_evaluation(tmp_path / "b", GOOD, **changes)
    message = refused(tmp_path, capsys, a, b)
    assert message.startswith(f"error: {a} and {b} cannot be compared: ")
    assert expected in message
    assert "; evaluate both" in message


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a comparison that is refused, and that writes nothing."""
    before = contents(folder)
    assert main(["compare", *map(str, arguments), f"output_dir={folder / 'out'}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert contents(folder) == before
    return message


def test_other_numbers_of_episodes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_evaluation(tmp_path / "a", GOOD), write_evaluation(tmp_path / "b", GOOD[:30])
    message = refused(tmp_path, capsys, a, b)
    assert f"{a} and {b} cannot be compared: they have 40 and 30 episodes; give episodes=40" in message
    assert compare(tmp_path, a, b, "episodes=30")["episodes"] == 30


@pytest.mark.parametrize(
    ("changes", "expected"), [({"nfe": 1}, "nfe is 4 and 1"), ({"n_action_steps": 8}, "n_action_steps is 4 and 8")]
)
def test_runs_that_act_otherwise_are_not_one_method(
    changes: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (write_evaluation(tmp_path / name, GOOD, **(changes if name == "b" else {})) for name in "abc")
    message = refused(tmp_path, capsys, f"flow={a},{b}", c)
    assert f"{a} and {b} are not one method, flow: {expected}; compare them under two names" in message
    compare(tmp_path, a, b, c)


def test_runs_that_were_trained_otherwise_are_not_one_method(
    copies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = copies
    other = write_evaluation(tmp_path / "other", [1, 0])
    for run in copies:
        write_evaluation(run, [1, 0])
    assert "both were trained with the same seed" in refused(tmp_path, capsys, f"flow={a},{b}", other)
    config = (b / "config.yaml").read_text()
    (b / "config.yaml").write_text(config.replace("\nseed: 0", "\nseed: 1"))
    compare(tmp_path, f"flow={a},{b}", other)
    (b / "config.yaml").write_text(config.replace("\nseed: 0", "\nseed: 1").replace("width: 32", "width: 64"))
    assert "network.width is 32 and 64; compare" in refused(tmp_path, capsys, f"flow={a},{b}", other)


def test_a_policy_that_was_trained_further_is_not_continued(
    copies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in copies:
        write_evaluation(run, [1, 0], step=4)
    message = refused(tmp_path, capsys, *copies, "episodes=3")
    assert f"{copies[0]} was evaluated at training step 4, and its checkpoint is of step 6 now" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["@/good"], "expected two runs or more to compare, but got good"),
        (["@/good", "@/none"], "there is no run at @/none: no such path"),
        (["@/good", "@/good"], "two methods are called"),
        (["a=@/good", "b=@/good"], "they are the same evaluation"),
        (["@/good", "x=@/bad,@/none"], "there is no run at @/none; give NAME=RUN,RUN"),
        (["@/good", "@/bad", "episode=40"], "did you mean the option episodes?"),
        (["@/good", "@/bad", "x="], "there is no run at an empty path"),
        (["@/good", "@/bad", "--fast"], "expected KEY=VALUE, but got '--fast'"),
        (["@/good", "@/bad", "measure=reward"], "measure=reward: there are success, score"),
        (["@/good", "@/bad", "alpha=1.0"], "alpha=1.0 must lie between 0 and 1"),
        (["@/good", "@/bad", "episodes=0"], "episodes=0 must be at least 1"),
        (["@/good", "@/bad", "round=0"], "round=0 must be at least 1"),
        (["@/good", "@/bad", "num_envs=0"], "num_envs=0 must be at least 1"),
        (["@/good", "@/bad", "stop=early"], "stop=early: there is sequential"),
        (["@/good", "@/bad", "stop=sequential"], "stop=sequential needs episodes=N"),
        (["x=@/good,@/middle", "@/bad", "stop=sequential", "episodes=9"], "compares single runs, but x has 2"),
        (["@/good", "@/bad", "seed=7"], "seed=7: these runs were evaluated from seed 100000"),
        (["@/good", "@/bad", "episodes=41"], "no checkpoint at @/good/checkpoints/best"),
    ],
)
def test_wrong_arguments_are_explained(
    arguments: list[str], expected: str, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(tmp_path, capsys, *(argument.replace("@", str(tmp_path)) for argument in arguments))
    assert expected.replace("@", str(tmp_path)) in message


def test_runs_without_evaluation_are_refused(
    copies: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"{copies[0]}, {copies[1]}: no evaluation; run flowchunk eval" in refused(tmp_path, capsys, *copies)
    checkpoint = copies[0] / "checkpoints" / "best"
    assert "is a checkpoint, and several of a run share" in refused(tmp_path, capsys, checkpoint, copies[1])


def test_episodes_on_hardware_are_not_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_evaluation(tmp_path / name, GOOD, robot="arm") for name in "ab")
    message = refused(tmp_path, capsys, a, b, "episodes=50")
    assert f"{a} has 40 episodes on hardware, and more cannot be simulated" in message


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"episodes"', '"others"'),
        lambda text: text.replace('"score": 1.0', '"score": 2.0'),
        lambda text: text.replace('"score": 1.0', '"score": null'),
        lambda text: text.replace('"seed": 100003', '"seed": 7'),
        lambda text: json.dumps({**json.loads(text), "episodes": []}),
    ],
)
def test_damaged_evaluations_are_refused(
    damage: Any, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs[0] / "eval" / "eval.json"
    file.write_text(damage(file.read_text()))
    assert f"{file} is damaged, or not written by flowchunk eval" in refused(tmp_path, capsys, *runs)
