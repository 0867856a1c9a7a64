"""flowchunk report: what a run holds is on its page, what it lacks is named, and what is damaged is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.cli.report_content import LARGEST_VIDEO, RunFiles
from flowchunk.cli.report_plots import quality_plot, start_plot, sweep_plot
from flowchunk.cli.run_data import hash_dataset
from flowchunk.cli.runs import read_config
from flowchunk.cli.start_states import StartStates, find_start_states, places_in
from flowchunk.cli.training_command import training_arguments
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.evaluation.intervals import wilson_interval
from tests.cli.evaluations import write_evaluation

LATENCY = {"p50": 12.3, "p95": 45.6}
BAD_LATENCY = '{"seed": 3, "episodes": [{"seed": 3, "score": 1, "success": true}], "latency_ms": {"p50": 1}}'
ROBOT = {
    "options": {"robot": "simulated"},
    "episodes": [{"success": True}, {"success": False}, {"success": None}],
    "preflight": {"robot": "arm-7", "rate": 125.0},
    **dict.fromkeys(("commands", "missed_deadlines", "chunks", "late_chunks", "held_steps"), 31),
    "interventions": {"clipped": 77},
    "stopped": "the cable came off",
    "fault": None,
}
SWEEP = {
    "n_action_steps": 4,
    "episodes": 20,
    "rows": [
        {"nfe": nfe, "score": 0.5, "success": 0.25, "success_ci95": [0.1, 0.4], "latency_ms": LATENCY} for nfe in (1, 7)
    ]
    + [{"nfe": 9, "refused": "invalid"}],
}


def page_of(run: Path, *options: str) -> str:
    assert main(["report", str(run), *options]) == 0
    return unescape((run / "report.html").read_text())


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to write into."""
    return Path(shutil.copytree(trained_run, tmp_path / "my run"))


@pytest.fixture(scope="module")
def complete(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a page can show, and its page; its videos are not real. Do not write into it."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("complete") / "my run"))
    write_evaluation(run, [0, 1, 1, 0], [0.2, 0.9, 0.8, 0.4], latency_ms=LATENCY, device="cpu")
    for name, steps in (("sweep", 4), ("sweep-8", 8)):
        write_json(run / name / "sweep.json", {**SWEEP, "n_action_steps": steps})
    write_json(run / "robot" / "run.json", ROBOT)
    (run / "eval" / "videos").mkdir()
    for seed in (100_000, 100_003, 100_001):  # worst, median and best
        (run / "eval" / "videos" / f"episode_{seed}.mp4").write_bytes(b"video")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "success_rate": 0.5, "score_mean": 0.75}) + "\n")
    assert main(["report", str(run)]) == 0
    return run


@pytest.fixture
def whole(complete: Path, tmp_path: Path) -> Path:
    """A copy of it without its page, to write into."""
    return Path(shutil.copytree(complete, tmp_path / "my run", ignore=shutil.ignore_patterns("report.html")))


@pytest.fixture
def page(complete: Path) -> str:
    return unescape((complete / "report.html").read_text())


def test_a_whole_page_shows_everything_and_lacks_nothing(page: str, pusht_store: Path) -> None:
    low, high = wilson_interval(2, 4)
    for text in (
        "<title>my run</title>",
        f"95 %: {low:.3f} to {high:.3f}",
        "mean of 4 episodes from seed 100000",
        "12.3 ms",
        f"<code>{pusht_store}</code>",
        hash_dataset(open_dataset(pusht_store)),
        "5, 100</td>",
        "10 to 30, median 20",
        "block_angle [rad]",
        "target_x [px]",
        "arm-7 at 125 commands per second, 3 episodes;\nsuccess 1 of 2",
        "<td>interventions: clipped</td><td>77</td>",
        "Stopped: the cable came off",
        "flowchunk train task=pusht_state",
        "flowchunk eval",
        "mujoco 3.3.0",
        "network:\n  name: mlp",
    ):
        assert text in page, text
    for name in ("worst: seed 100000", "median: seed 100003", "best: seed 100001"):
        assert name in page
    assert page.count("<video") == 3
    assert page.count('<img src="data:image/png;base64,') == 5
    assert 'class="missing"' not in page


def test_episodes_whose_environment_failed_are_counted_and_their_errors_shown(whole: Path) -> None:
    file = whole / "eval" / "eval.json"
    content = json.loads(file.read_text())
    content["episodes"][1]["error"] = "RuntimeError: the gripper is <stuck>"
    content["episodes"][2]["error"] = None
    write_json(file, content)
    shown = page_of(whole)
    assert "The environment failed in 1 of 4 episodes" in shown
    assert "<td>100001</td>" in shown
    assert "<code>RuntimeError: the gripper is <stuck></code>" in shown
    assert "&lt;stuck&gt;" in (whole / "report.html").read_text()


def test_the_page_refers_to_nothing_else(page: str) -> None:
    for reference in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page):
        assert reference.startswith("data:"), reference
    for tag in ("<script", "<link", "<iframe", "@import"):
        assert tag not in page


def test_text_of_others_is_escaped(whole: Path) -> None:
    write_json(whole / "robot" / "run.json", {**ROBOT, "stopped": "<script>alert(1)</script>"})
    assert main(["report", str(whole)]) == 0
    assert "<script" not in (whole / "report.html").read_text()


def remove(*names: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        for name in names:
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def without_evaluation_in_training(run: Path) -> None:
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"score' not in line]
    (run / "metrics.jsonl").write_text("\n".join(lines))


def move_data(run: Path) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"path: .*pusht.zarr", "path: /nowhere/pusht.zarr", config))


def enlarge_video(run: Path) -> None:
    (run / "eval" / "videos" / "episode_100003.mp4").write_bytes(bytes(LARGEST_VIDEO + 1))


@pytest.mark.parametrize(
    ("change", "expected", "gone"),
    [
        (remove("eval"), "score, success and latency: flowchunk eval '", "mean of 4 episodes"),
        (remove("eval/videos"), "flowchunk report '", "<video"),
        (enlarge_video, "flowchunk report '", "median: seed"),
        (remove("sweep", "sweep-8"), "success against nfe: flowchunk sweep '", "success against nfe and"),
        (remove("sweep-8"), "success against n_action_steps: flowchunk sweep '", "<td>8</td><td>20</td>"),
        (remove("robot"), "results on a robot: flowchunk run '", "arm-7"),
        (remove("metrics.jsonl"), "no metrics were logged", "loss over the steps"),
        (without_evaluation_in_training, "evaluation.episodes=N of flowchunk train adds it", "success over the steps"),
        (remove("config.yaml"), "the data set is unknown", "SHA-256"),
        (remove("config.yaml"), "the command of the training is not known", "flowchunk train task"),
        (move_data, "the data set cannot be read: ", "SHA-256"),
    ],
)
def test_what_is_missing_is_left_out_and_the_command_that_adds_it_is_named(
    change: Callable[[Path], None], expected: str, gone: str, whole: Path, page: str
) -> None:
    assert gone in page
    change(whole)
    changed = page_of(whole)
    assert re.search(f'<p class="missing">[^<]*{re.escape(expected)}', changed)
    assert gone not in changed


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("eval/eval.json", "{}", "eval.json is damaged"),
        (
            "sweep/sweep.json",
            '{"n_action_steps": 4, "rows": 3}',
            "sweep.json is damaged, or not written by flowchunk sweep",
        ),
        ("eval/eval.json", BAD_LATENCY, "eval.json is damaged, or not written by flowchunk eval (KeyError('p95'))"),
        ("sweep/sweep.json", "[", "sweep.json is damaged"),
        ("robot/run.json", "{}", "run.json is damaged, or not written by flowchunk run"),
        ("config.yaml", "", "config.yaml is empty or damaged"),
        ("metrics.jsonl", '{"step": 1}\nxx\n{"step": 2}\n', "metrics.jsonl is damaged: line 2"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl is damaged: line"),
        ("checkpoints/best/checkpoint.json", '{"format_version": 2}', "checkpoint.json does not hold config, training"),
        ("checkpoints/best/checkpoint.json", "[", "checkpoint.json"),
    ],
)
def test_damaged_files_are_refused_and_no_page_is_written(
    name: str, content: str, error: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole / name).write_text(content)
    assert main(["report", str(whole)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert error in message
    assert not (whole / "report.html").exists()


def test_a_last_line_that_a_crash_cut_off_is_no_damage(whole: Path) -> None:
    with (whole / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert "loss over the steps" in page_of(whole)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "no checkpoint at" in capsys.readouterr().err


def test_the_page_can_be_put_elsewhere_but_not_onto_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), f"output={tmp_path / 'pages' / 'mine.html'}"]) == 0
    assert "my run" in (tmp_path / "pages" / "mine.html").read_text()
    assert not (run / "report.html").exists()
    assert main(["report", str(run), f"output={tmp_path}"]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_videos_of_the_ranked_episodes_are_recorded(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "videos=true"]) == 1
    assert "run flowchunk eval" in capsys.readouterr().err
    assert main(["eval", str(run), "episodes=2", "video=0", "env.render_size=64"]) == 0
    page = page_of(run, "videos=true")
    seeds = {episode["seed"] for episode in RunFiles.read(run).ranked_episodes().values()}
    assert {file.name for file in (run / "eval" / "videos").iterdir()} == {f"episode_{seed}.mp4" for seed in seeds}
    assert page.count("<video") == len(seeds) == 2


def test_a_model_of_generated_data_has_a_page_without_robots(toy_run: Path, tmp_path: Path) -> None:
    page = page_of(Path(shutil.copytree(toy_run, tmp_path / "toy")))
    assert "loss over the steps" in page
    assert "flowchunk train task=toy2d" in page
    assert "Generated: 8gaussians" in page
    assert 'class="missing"' not in page.partition("<h2>Data")[2]
    assert "On a robot" not in page
    assert "flowchunk eval" not in page


def test_an_old_runs_data_are_named(toy_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(toy_run, tmp_path / "toy"))
    (run / "config.yaml").write_text("dataset: checkerboard\n")
    page = page_of(run)
    assert "Generated: checkerboard" in page
    assert "the command of the training is not known" in page


# The parts


def test_ranked_episodes_are_different_ones(run: Path) -> None:
    for number, names in ((1, ["worst"]), (2, ["worst", "best"]), (3, ["worst", "median", "best"])):
        write_evaluation(run, [0] * number, [0.5] * number)
        assert list(RunFiles.read(run).ranked_episodes()) == names
    write_evaluation(run, [0] * 7, [0.6, 0.1, 0.3, 0.0, 0.5, 0.4, 0.2])
    assert [episode["score"] for episode in RunFiles.read(run).ranked_episodes().values()] == [0.0, 0.3, 0.6]


def test_success_over_training_has_intervals_of_its_episodes_and_a_mark_at_the_best() -> None:
    entries = [{"step": 1, "success_rate": 0.5}, {"step": 2, "success_rate": 0.75}]
    shown = [quality_plot(entries, episodes=episodes, best_step=best) for episodes in (0, 20, 200) for best in (1, 2)]
    assert len({*shown}) == 6
    assert quality_plot([{"step": 1, "loss": 0.5}], episodes=20, best_step=1) is None


def test_a_sweep_shows_its_intervals() -> None:
    row = {"nfe": 4, "n_action_steps": 8, "success": 0.5}
    assert sweep_plot([{**row, "success_ci95": [0.2, 0.8]}]) != sweep_plot([{**row, "success_ci95": [0.4, 0.6]}])


def test_a_map_shows_which_episodes_failed() -> None:
    states = StartStates("block", "px", np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.0, 1.0]))
    shown = {start_plot(states, [{"success": a}, {"success": not a}]) for a in (True, False)}
    assert len(shown) == 2


def test_start_states_are_those_of_the_episodes() -> None:
    seeds = [3, 8]
    env = environment_maker("flowchunk/PushT-v1", {"observation": "state"})()
    expected = np.stack([env.reset(seed=seed)[0]["state"] for seed in seeds])
    env.close()
    for observation in ("state", "image"):
        found = find_start_states("flowchunk/PushT-v1", {"observation": observation}, seeds)
        assert found is not None
        assert (found.name, found.unit) == ("block", "px")
        np.testing.assert_array_equal(found.points, expected[:, 2:4])
        assert found.angles is not None
        np.testing.assert_array_equal(found.angles, expected[:, 4])
    assert find_start_states("flowchunk/PushT-v1", {"observation": "state"}, [3, 3]) is None


def test_the_start_of_the_arms_cube_is_a_place_and_a_rotation_is_not() -> None:
    found = find_start_states("flowchunk/PickPlace-v1", {"observation": "state"}, [0, 1])
    assert found is not None
    assert (found.name, found.unit, found.angles) == ("cube", "m", None)
    rotation = ObservationField((2,), ("x_axis_x", "x_axis_y"))
    assert not [*places_in(ObservationSpec({"rotation": rotation}))]


def test_the_hash_follows_the_data_and_not_their_place(pusht_store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pusht_store, tmp_path / "copy.zarr"))
    assert hash_dataset(open_dataset(copy)) == hash_dataset(open_dataset(pusht_store))
    chunk = next(file for file in sorted((copy / "data" / "action").rglob("*")) if file.name[0].isdigit())
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    assert hash_dataset(open_dataset(copy)) != hash_dataset(open_dataset(pusht_store))


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("train", ["task=pusht_state", "dataset.path=/a b/it's.zarr", "network=dit", "network.width=48"]),
        ("train", ["task=pusht_state", "dataset.path=/x", "env.goal_pose=[1,2,0.5]", "policy.mask_padding=true"]),
        ("train", ["task=pusht_image", "dataset.path=/x", "vision=small_conv", "dataset.symmetry=null", "seed=3"]),
        ("train", ["task=pickplace_state", "dataset.path=/x", "training.learning_rate=1e-5", "objective=mip"]),
        ("train", ["task=own", "dataset.path=/x", "dataset.sources.state='s[:2] + b'", "dataset.normalizer.s=gaussian"]),
        ("train_generative", ["task=toy2d", "dataset=spiral", "model.label_dropout=0.5"]),
        ("train_generative", ["task=images", "dataset=folder", "dataset.path=/true", "network=unet2d"]),
    ],
)  # fmt: skip
def test_the_command_gives_the_same_options_and_names_only_what_differs(config: str, arguments: list[str]) -> None:
    options = read_options(config, [*arguments, "output_dir=/somewhere"])
    found = training_arguments(options)
    assert found is not None
    assert read_options(config, [*found, "output_dir=/somewhere"]) == options
    assert not any(argument.startswith(("output_dir", "training.steps")) for argument in found)


def test_options_that_no_command_gives_have_no_command(trained_run: Path) -> None:
    options = read_config(trained_run / "config.yaml")
    assert training_arguments(options) is not None
    assert training_arguments({**options, "from_the_future": 1}) is None
    assert training_arguments({}) is None
