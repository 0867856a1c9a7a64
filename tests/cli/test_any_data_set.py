"""Training on a data set of any format without a task: what is derived, printed, overridden and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowchunk.cli.main import main
from flowchunk.cli.options import read_options
from flowchunk.cli.own_data import derived_overrides
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.datasets.formats.foreign import FORMATS, write_lerobot_3


def derived(path: Path, *arguments: str) -> dict[str, str]:
    """The options that follow from a data set, on a CPU."""
    given = ["device=cpu", *arguments]
    options = read_options("train", [f"dataset.path={path}", *given])
    names = [argument.partition("=")[0] for argument in given]
    horizon = options["policy"]["horizon"] if "policy.horizon" in names else None
    return dict(item.split("=", 1) for item in derived_overrides(options, names, horizon=horizon))


def write(
    path: Path,
    hz: float,
    *,
    joints: int = 2,
    size: tuple[int, int] | None = None,
    offset: float = 0.1,
    **dimension: Any,
) -> Path:
    """One of flowchunk's stores with joints that the actions lead by ``offset``, and a camera if there is a size."""
    names = ("shoulder", "elbow", *(f"joint_{index}" for index in range(joints - 2)))
    fields = {"joints": ObservationField((joints,), names=names)}
    if size is not None:
        fields["front"] = ObservationField((*size, 3), camera="front")
    actions = ActionSpec(tuple(ActionDimension(name, "rad", "joint", **dimension) for name in names), control_hz=hz)
    random = np.random.default_rng(0)
    with StoreWriter(path, observation_spec=ObservationSpec(fields), action_spec=actions) as writer:
        for _ in range(3):
            values = random.normal(size=(12, joints)).cumsum(0)
            images = {} if size is None else {"front": random.integers(0, 255, (12, *size, 3), dtype=np.uint8)}
            writer.add_episode({"joints": values, **images}, values + offset)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_trained_on(
    name: str, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = FORMATS[name](tmp_path), tmp_path / "run"
    rate = ["dataset.control_hz=10"] if name.startswith("zarr") else []
    arguments = [f"dataset.path={path}", f"output_dir={run}", f"dataset.cache_dir={tmp_path}", *rate, *tiny]
    assert main(["train", *arguments, "vision.widths=[8,8]"]) == 0
    shown = capsys.readouterr().out
    for text in (
        "control_hz",
        "absolute",
        "default: hardware=cpu",
        "default: policy.horizon=16",
        "3 episodes, 20 time",
    ):
        assert text in shown
    policy = ChunkPolicy.load(run)
    assert policy.action_spec.control_hz == 10
    assert len(policy.observation_spec.images) == 1


def test_a_broken_camera_is_left_out_by_name(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lerobot_3(tmp_path)
    next((path / "videos").rglob("*.mp4")).unlink()
    arguments = ["train", f"dataset.path={path}", f"output_dir={tmp_path / 'run'}", *tiny]
    assert main(arguments) == 1
    assert "leave it out: dataset.exclude=[front]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "dataset.exclude=[front]"]) == 0
    assert {*ChunkPolicy.load(tmp_path / "run").observation_spec.fields} == {"state"}


@pytest.mark.parametrize(("hz", "horizon"), [(2.0, 8), (10.0, 16), (20.0, 32), (50.0, 32), (500.0, 32)])
def test_the_horizon_follows_from_the_rate(hz: float, horizon: int, tmp_path: Path) -> None:
    options = derived(write(tmp_path / "data.zarr", hz))
    assert (options["policy.horizon"], options["policy.n_action_steps"]) == (str(horizon), str(horizon // 2))


def test_chunks_that_do_not_fit_through_an_mlp_take_another_network(tmp_path: Path) -> None:
    """The noise of more numbers than it is wide would stay in the chunks."""
    assert "network" not in derived(write(tmp_path / "few.zarr", 20))
    assert derived(write(tmp_path / "many.zarr", 20, joints=17))["network"] == "mixer"
    assert "network" not in derived(tmp_path / "many.zarr", "network=mlp")
    assert "network" not in derived(tmp_path / "many.zarr", "policy.horizon=30")


def test_actions_are_relative_to_observed_values_of_their_names(tmp_path: Path) -> None:
    near = derived(write(tmp_path / "near.zarr", 10))
    assert near["policy.relative_to"] == "['joints.shoulder','joints.elbow']"
    assert "policy.relative_to" not in derived(write(tmp_path / "far.zarr", 10, offset=50.0))
    assert "policy.relative_to" not in derived(write(tmp_path / "delta.zarr", 10, reference="delta"))
    assert "policy.relative_to" not in derived(tmp_path / "near.zarr", "dataset.names.joints=[a,b]")


@pytest.mark.parametrize(
    ("size", "scaled", "crop"), [((96, 96), None, "[84,84]"), ((200, 300), "[96,144]", "[84,126]")]
)
def test_images_are_scaled_and_cropped_for_the_hardware(
    size: tuple[int, int], scaled: str | None, crop: str, tmp_path: Path
) -> None:
    options = derived(write(tmp_path / "data.zarr", 10, size=size))
    assert options["hardware"] == "cpu"
    assert options.get("dataset.image_size") == scaled
    assert options["vision.crop"] == crop
    assert "hardware" not in derived(tmp_path / "data.zarr", "vision=resnet18")


def test_what_is_given_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "data.zarr", 10, size=(200, 300))
    given = ["policy.horizon=8", "policy.relative_to=null", "dataset.image_size=[50,60]", "hardware=gpu"]
    options = derived(path, *given)
    assert options == {"policy.n_action_steps": "4", "vision.crop": "[43,52]"}


def test_sources_are_used_with_flowchunks_own_stores(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """A task brings sources for stores of others, which its own stores ignore; here the user means this one."""
    path, run = write(tmp_path / "data.zarr", 10), tmp_path / "run"
    chosen = ["dataset.sources.elbow=joints[1:]", "dataset.observe=[elbow]"]
    assert main(["train", f"dataset.path={path}", f"output_dir={run}", *chosen, *tiny]) == 0
    assert ChunkPolicy.load(run).observation_spec.fields == {"elbow": ObservationField((1,))}


def test_a_run_remembers_where_its_data_are(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data.zarr", 10)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dataset.path=data.zarr", "output_dir=run", *tiny]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["eval", "../run", "dataset.path=../data.zarr"]) == 0
    assert "1 held-out episode" in capsys.readouterr().out


def test_episodes_shorter_than_a_chunk_are_pointed_out(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "data.zarr", 10)
    for horizon, is_noted in ((13, True), (12, False)):
        folder = tmp_path / str(horizon)
        chosen = [*tiny, f"policy.horizon={horizon}"]
        assert main(["train", f"dataset.path={path}", f"output_dir={folder}", *chosen]) == 0
        note = f"note: the median episode has 12 time steps, fewer than a chunk of {horizon}, whose rest repeats"
        assert (note in capsys.readouterr().out) == is_noted


def test_actions_are_relative_only_to_what_has_their_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "data.zarr", 10)
    assert derived(path)["policy.relative_to"] == "['joints.shoulder','joints.elbow']"
    assert "policy.relative_to" in derived(path, "dataset.units.joints=rad")
    assert "policy.relative_to" not in derived(path, "dataset.units.joints=deg")


def test_actions_outside_their_bounds_are_pointed_out(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "data.zarr", 10, low=-0.1, high=100.0)
    assert main(["train", f"dataset.path={path}", f"output_dir={tmp_path / 'run'}", *tiny]) == 0
    shown = capsys.readouterr().out
    assert "note: shoulder is recorded from -" in shown
    assert " rad, outside its bounds, -0.1 to 100.0, to which a robot keeps: check its unit" in shown
    within = write(tmp_path / "within.zarr", 10, low=-100.0, high=100.0)
    assert main(["train", f"dataset.path={within}", f"output_dir={tmp_path / 'other'}", *tiny]) == 0
    assert "outside its bounds" not in capsys.readouterr().out


def test_a_wrong_image_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "data.zarr", 10, size=(20, 30))
    assert main(["train", f"dataset.path={path}", "dataset.image_size=[96]"]) == 1
    assert "dataset.image_size=[96] must be [height, width] in pixels" in capsys.readouterr().err


def test_a_policy_on_scaled_images_says_so_in_its_specification(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    path = write(tmp_path / "data.zarr", 10, size=(40, 60))
    more = ["dataset.image_size=[20,30]", "vision.crop=null", f"dataset.cache_dir={tmp_path}", "vision.widths=[8,8]"]
    assert main(["train", f"dataset.path={path}", f"output_dir={tmp_path / 'run'}", *more, *tiny]) == 0
    assert ChunkPolicy.load(tmp_path / "run").observation_spec.fields["front"].shape == (20, 30, 3)


def test_recordings_of_others_that_say_something_else_are_refused(
    tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Formats without specifications still state a rate, names and tasks."""
    data, run, other = write_lerobot_3(tmp_path, codec="png"), tmp_path / "run", tmp_path / "other"
    chosen = ["dataset.exclude=[front]", "dataset.condition_on_task=true"]
    assert main(["train", f"dataset.path={data}", f"output_dir={run}", *chosen, *tiny]) == 0
    shutil.copytree(data, other)
    assert main(["eval", str(run), f"dataset.path={other}"]) == 0
    tasks = pa.table({"task_index": [0, 1], "task": ["pull", "push"]})
    changes: tuple[tuple[Callable[[Any], object], str], ...] = (
        (lambda info: info.update(fps=50), "control_hz differ: the policy has 10.0, but"),
        (lambda info: info["features"]["observation.state"].update(names=["y", "x"]), "the names of state differ"),
        (lambda _: pq.write_table(tasks, other / "meta" / "tasks.parquet"), "the tasks differ"),
    )
    for change, message in changes:
        info = json.loads((data / "meta" / "info.json").read_text())
        change(info)
        (other / "meta" / "info.json").write_text(json.dumps(info))
        capsys.readouterr()
        assert main(["eval", str(run), f"dataset.path={other}"]) == 1
        assert message in capsys.readouterr().err
