"""flowchunk data edit from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowchunk.cli.main import main
from flowchunk.datasets.formats.zarr_store import Store


def edit(source: Path, out: Path, *arguments: str) -> int:
    return main(["data", "edit", str(source), str(out), *arguments])


def test_operations_are_combined(pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged, five episodes with lengths 30, 10, 25, 20 and 15 twice; the state's columns are named."""
    arguments = [
        f"merge=[{pusht_store}]",
        "delete=[0,6:10]",
        "split={train: 0.6, valid: 0.4}",
        "rename={state: pose}",
        "dataset.control_hz=10",
        "dataset.names.action=[x,y]",
    ]
    assert edit(pusht_store, tmp_path / "out.zarr", *arguments) == 0
    shown = capsys.readouterr().out
    train, valid = (Store.open(tmp_path / f"out_{name}.zarr") for name in ("train", "valid"))
    assert sorted([*train.episode_lengths, *valid.episode_lengths]) == [10, 15, 20, 25, 30]
    assert [len(one.episode_ends) for one in (train, valid)] == [3, 2]
    assert f"kept 5 of 10 episodes, 100 of 200 frames → {train.path}, {valid.path}" in shown
    assert train.action_spec is not None
    assert train.action_spec.names == ("x", "y")
    assert train.keys == ("action", "pose")


def test_the_result_is_trained_on(pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    assert edit(pusht_store, tmp_path / "out.zarr", "keep=[1:4]", "dataset.control_hz=10", "trim_idle=0.01") == 0
    paths = [f"dataset.path={tmp_path / 'out.zarr'}", f"output_dir={tmp_path / 'run'}"]
    assert main(["train", *paths, *tiny]) == 0


def test_sections_can_be_given_by_key(pusht_store: Path, tmp_path: Path) -> None:
    arguments = ("split.a=1", "split.b=2", "seed=3", "rename.state=s", "dataset.control_hz=10")
    assert edit(pusht_store, tmp_path / "out", *arguments) == 0
    assert [len(Store.open(tmp_path / f"out_{name}").episode_ends) for name in "ab"] == [1, 2]


def test_merge_expands_the_home_folder(pusht_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pusht_store.parent))
    options = (
        "merge=['~/pusht.zarr']",
        "dataset.control_hz=10",
        "dataset.sources.agent='state[:2]'",
        "dataset.observe=[agent]",
    )
    assert edit(pusht_store, tmp_path / "out.zarr", *options) == 0
    out, state = Store.open(tmp_path / "out.zarr"), Store.open(pusht_store).read("state")[:, :2]
    np.testing.assert_array_equal(out.read("agent"), np.concatenate([state, state]))


def test_actions_are_expressed_in_another_way(pusht_store: Path, tmp_path: Path) -> None:
    """Three columns are a rotation; the other is relative to the observed x."""
    described = (
        "dataset.sources.action='action + state[:2]'",
        "dataset.names={action: [rx,ry,rz,x], state: [x,y,bx,by,angle]}",
        "dataset.rotations.axis_angle=[rx,ry,rz]",
        "dataset.control_hz=10",
    )
    changes = (
        "rotation=rotation_6d",
        "reference=[absolute,absolute,absolute,relative]",
        "relative_to=[null,null,null,state.y]",
    )
    assert edit(pusht_store, tmp_path / "out.zarr", *described, *changes) == 0
    store = Store.open(tmp_path / "out.zarr")
    assert store.action_spec is not None
    assert [(one.reference, one.rotation) for one in store.action_spec.dimensions] == [
        *[("absolute", "rotation_6d")] * 6,
        ("relative", None),
    ]
    np.testing.assert_array_equal(store.read("action")[:, 6], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OUT"], "usage: flowchunk data edit SOURCE OUT [KEY=VALUE ...] [--skip-corrupt]"),
        (["SOURCE", "OUT", "more"], "usage: flowchunk data edit"),
        (["SOURCE", "OUT", "--skip"], "usage: flowchunk data edit"),
        (["SOURCE", "OUT"], "does not say at which rate it was recorded"),
        (["SOURCE", "SOURCE", "dataset.control_hz=10"], "exists already"),
        (["SOURCE", "OUT", "delet=[3]"], "unknown option 'delet'; did you mean delete or"),
        (["SOURCE", "OUT", "delete=3"], "delete=3 must be a list"),
        (["SOURCE", "OUT", "split=0.9"], "split=0.9 is not a value but a section"),
        (["SOURCE", "OUT", "rename={state: [a]}", "dataset.control_hz=10"], "rename.state=['a'] cannot be the name"),
        (["SOURCE", "OUT", "trim_idle=much"], "trim_idle=much must be a number"),
        (["SOURCE", "OUT", "dataset.control_hz=10", "delete=[5]"], "episodes are numbered 0 to 4, so 5 names none"),
        (["SOURCE", "OUT", "dataset.control_hz=10", "reference=relative"], "without an observed value"),
        (["SOURCE", "OUT", "merge=[nowhere]", "dataset.control_hz=10"], "no data set at nowhere"),
        (["nowhere", "OUT"], "no data set at nowhere"),
    ],
)
def test_what_cannot_be_edited(
    pusht_store: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"SOURCE": str(pusht_store), "OUT": str(tmp_path / "out.zarr")}
    assert main(["data", "edit", *(paths.get(argument, argument) for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
