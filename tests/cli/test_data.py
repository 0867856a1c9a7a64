"""flowchunk data: what inspect tells of our stores and of others', and what convert makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from flowchunk.cli.main import main
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["data", "inspect", str(path)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("fixture", ["pickplace_store", "pusht_store"])
def test_episodes_lengths_keys_shapes_and_ranges(
    fixture: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = request.getfixturevalue(fixture)
    shown, store = inspect(path, capsys), Store.open(path)
    lengths = store.episode_lengths
    assert f"{path}: {len(lengths)} episodes, {store.num_frames} frames" in shown
    assert f"lengths {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}" in shown
    for key in ("state", "action"):
        values = store.read(key)
        cells = [key, f"({values.shape[1]},)", "float32", f"{values.min():g}", f"{values.max():g}"]
        assert re.search(r"\s*│\s*".join(map(re.escape, cells)), shown), f"no row {cells} in\n{shown}"


def test_our_stores_say_what_the_numbers_mean(pickplace_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, store = inspect(pickplace_store, capsys), Store.open(pickplace_store)
    assert store.observation_spec is not None
    assert store.action_spec is not None
    for name, unit in zip(
        store.observation_spec.fields["state"].names, store.observation_spec.fields["state"].units, strict=True
    ):
        assert re.search(rf"state\s*│ {name}\s*│ {unit}\s*│", shown)
    for one in store.action_spec.dimensions:
        row = rf"{one.name}\s*│ {one.unit}\s*│ {one.coordinate_frame}\s*│ absolute\s*│\s*│ {one.low}\s*│ {one.high}"
        assert re.search(row, shown)
    assert "commanded at 20 Hz" in shown
    assert "flowchunk's zarr, format 3" in shown


def test_of_others_stores_it_says_that_the_meaning_is_unknown(
    pusht_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = inspect(pusht_store, capsys)
    assert "5 episodes, 100 frames; lengths 10 to 30, median 20 (diffusion_policy's zarr, format 2)" in shown
    assert "no specifications stored" in shown


# Converting.


@pytest.fixture(scope="module")
def keypoints_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes in diffusion_policy's layout, with an image that the task does not use."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("stores") / "keypoints.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, shape in (("keypoint", (9, 2)), ("state", (5,)), ("action", (2,)), ("img", (6, 6, 3))):
        values = random.integers(100, 400 if name != "img" else 256, (30, *shape)).astype(np.float32)
        root.create_array(f"data/{name}", data=values, chunks=(8, *shape))
    root.create_array("meta/episode_ends", data=np.array([10, 18, 30]))
    return path


def test_a_store_of_others_becomes_ours_and_trains(
    keypoints_store: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours.zarr"
    assert main(["data", "convert", str(keypoints_store), str(out), "task=pusht_keypoints"]) == 0
    assert f"{out}: 3 episodes, 30 frames" in capsys.readouterr().out
    store, source = Store.open(out), Store.open(keypoints_store)
    assert store.observation_spec is not None
    np.testing.assert_array_equal(store.read("keypoints"), source.read("keypoint"))
    np.testing.assert_array_equal(store.read("agent_position"), source.read("state")[:, :2])
    run = tmp_path / "run"
    assert main(["train", "task=pusht_keypoints", f"dataset.path={out}", f"output_dir={run}", *tiny]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OUT"], "usage: flowchunk data convert SOURCE OUT"),
        (["SOURCE", "OUT", "more", "task=pusht_keypoints"], "usage: flowchunk data convert"),
        (["SOURCE", "OUT", "--skip", "task=pusht_keypoints"], "usage: flowchunk data convert"),
        (["SOURCE", "OUT"], "does not say at which rate it was recorded"),
        (["SOURCE", "OUT", "task=pusht_keypoints", "jpeg=high"], "jpeg=high must be a whole number"),
        (["SOURCE", "OUT", "task=pusht_keypoints", "jpeg=101"], "jpeg=101 must be a quality from 1 to 100"),
        (["SOURCE", "OUT", "task=pickplace_state"], "has frames of shape"),
        (["nowhere", "OUT", "task=pusht_keypoints"], "no data set at nowhere"),
    ],
)
def test_what_cannot_be_converted(
    keypoints_store: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"SOURCE": str(keypoints_store), "OUT": str(tmp_path / "ours.zarr")}
    assert main(["data", "convert", *(paths.get(argument, argument) for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ours.zarr").exists()


def test_pictures_are_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ObservationSpec({"image": ObservationField((6, 8, 3), camera="wrist")})
    action_spec = ActionSpec((ActionDimension("x", "m", "world"),), control_hz=10.0)
    with StoreWriter(tmp_path / "ours.zarr", observation_spec=spec, action_spec=action_spec, jpeg=90) as writer:
        writer.add_episode({"image": np.full((5, 6, 8, 3), 77, np.uint8)}, np.zeros((5, 1)))
    shown = inspect(tmp_path / "ours.zarr", capsys)
    assert re.search(r"image\s*│\s*\(6, 8, 3\)\s*│\s*uint8\s*│\s*77\s*│\s*77", shown)
    assert re.search(r"image\s*│ image of camera wrist, 6x8 RGB", shown)
