"""Edits of data sets: values exactly, specifications, and that nothing is left of an edit that fails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.edit import EditOptions, edit
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError, SpecMismatchError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from tests.datasets.formats.foreign import FORMATS, HZ, LOSSY
from tests.datasets.image_stores import chunk_files, record, smooth_images, write_foreign

LENGTHS = (5, 3, 6, 4)
FRAMES = sum(LENGTHS)
STARTS = np.cumsum((0, *LENGTHS))
IMAGES = smooth_images(FRAMES)


@pytest.fixture
def source(tmp_path: Path) -> Store:
    """Frame k's position is (k, -k), its action k."""
    return record(tmp_path / "source.zarr", IMAGES, LENGTHS)


def run(
    sources: EpisodeSource | Sequence[EpisodeSource],
    out: Path,
    *,
    dataset: SpecOptions | None = None,
    skip_corrupt: bool = False,
    say: list[str] | None = None,
    jpeg: int | None = None,
    **options: Any,
) -> list[Store]:
    sources = [sources] if isinstance(sources, EpisodeSource) else sources
    specs = [derive_specs(source, dataset or SpecOptions(control_hz=HZ)) for source in sources]
    messages = [] if say is None else say
    paths = edit(sources, specs, EditOptions(**options), out, jpeg=jpeg, skip_corrupt=skip_corrupt, say=messages.append)
    return [Store.open(path) for path in paths]


def rows_of(*episodes: int) -> np.ndarray:
    return np.concatenate([np.arange(STARTS[one], STARTS[one + 1]) for one in episodes])


def require_rows(store: Store, rows: np.ndarray) -> None:
    """The store holds these rows of the source, in every key."""
    np.testing.assert_array_equal(store.read("action")[:, 0], rows)
    np.testing.assert_array_equal(store.read("position"), np.stack([rows, -rows], axis=1))
    np.testing.assert_array_equal(store.read("image"), IMAGES[rows])


def nothing_but(folder: Path, *names: str) -> bool:
    return {path.name for path in folder.iterdir()} == {*names}


# What is written.


def test_without_options_it_is_a_copy(source: Store, tmp_path: Path) -> None:
    (store,) = run(source, tmp_path / "out.zarr")
    assert store.path == tmp_path / "out.zarr"
    assert (store.observation_spec, store.action_spec) == (source.observation_spec, source.action_spec)
    assert tuple(store.episode_lengths) == LENGTHS
    require_rows(store, np.arange(FRAMES))


def test_episodes_are_deleted_or_kept(source: Store, tmp_path: Path) -> None:
    said: list[str] = []
    (store,) = run(source, tmp_path / "a.zarr", delete=["1:3"], say=said)
    assert tuple(store.episode_lengths) == (5, 4)
    require_rows(store, rows_of(0, 3))
    assert said == [f"kept 2 of 4 episodes, 9 of 18 frames → {store.path}"]
    (store,) = run(source, tmp_path / "b.zarr", keep=[1])
    require_rows(store, rows_of(1))


def test_data_sets_are_merged_and_numbered_on(source: Store, tmp_path: Path) -> None:
    other = record(tmp_path / "other.zarr", IMAGES[:7], (3, 4))
    said: list[str] = []
    (store,) = run([source, other, source], tmp_path / "out.zarr", keep=[3, 5, 6], say=said)
    assert tuple(store.episode_lengths) == (4, 4, 5)
    require_rows(store, np.concatenate([rows_of(3), np.arange(3, 7), rows_of(0)]))
    assert said[-1].startswith("kept 3 of 10 episodes, 13 of 43 frames")


def test_episodes_are_split_at_random_into_several_stores(source: Store, tmp_path: Path) -> None:
    said: list[str] = []
    stores = run(source, tmp_path / "out.zarr", split={"train": 0.6, "valid": 0.3}, delete=[0], say=said)
    assert [store.path.name for store in stores] == ["out_train.zarr", "out_valid.zarr"]
    found = [store.read("action")[:, 0].astype(int).tolist() for store in stores]
    episodes = [[index for index in range(4) if STARTS[index] in rows] for rows in found]
    assert [len(part) for part in episodes] == [2, 1]
    assert {*episodes[0], *episodes[1]} == {1, 2, 3}
    for store, part in zip(stores, episodes, strict=True):
        require_rows(store, rows_of(*part))
        assert f"{store.path}: {len(part):,} episodes, {len(rows_of(*part))} frames" in said
    assert said[-1].endswith(f"→ {stores[0].path}, {stores[1].path}")
    other = run(source, tmp_path / "other", split={"a": 1, "b": 1}, seed=1)
    assert [store.path.name for store in other] == ["other_a", "other_b"]


def test_the_split_depends_on_the_seed(tmp_path: Path) -> None:
    many = record(tmp_path / "many.zarr", smooth_images(40), (1,) * 40)
    halves = [
        run(many, tmp_path / f"{number}.zarr", split={"half": 20}, seed=seed)[0].read("action").tolist()
        for number, seed in enumerate((0, 0, 1))
    ]
    assert halves[0] == halves[1] != halves[2]


def test_idle_time_steps_are_trimmed(tmp_path: Path) -> None:
    """The tolerance is a fraction of the range over the chosen episodes."""
    moves = ([0, 0, 0.4, 10, 10.4, 10.8], [3, 3, 3], [0, 1000])
    store = record_actions(tmp_path / "source.zarr", [np.array(one)[:, None] for one in moves])
    said: list[str] = []
    (out,) = run(store, tmp_path / "out.zarr", trim_idle=0.05, keep=[0, 1], say=said)
    np.testing.assert_allclose(out.read("action")[:, 0], [0.4, 10, 10.4, 3])
    assert tuple(out.episode_lengths) == (3, 1)
    np.testing.assert_array_equal(out.read("state")[:, 0], [2, 3, 4, 0])
    assert said[-1].startswith("kept 2 of 3 episodes, 4 of 11 frames")
    (out,) = run(store, tmp_path / "exact.zarr", trim_idle=0.0, keep=[0])
    np.testing.assert_allclose(out.read("action")[:, 0], [0, 0.4, 10, 10.4, 10.8])
    (out,) = run(store, tmp_path / "all.zarr", trim_idle=0.05)
    assert tuple(out.episode_lengths) == (1, 1, 2)


def test_a_constant_delta_is_no_idle_time_step(tmp_path: Path) -> None:
    store = record_actions(tmp_path / "source.zarr", [np.array([0, 0, 1, 1, 1.0])[:, None]])
    delta = SpecOptions(reference="delta")
    (out,) = run(store, tmp_path / "out.zarr", trim_idle=0.1, dataset=delta)
    np.testing.assert_array_equal(out.read("action")[:, 0], [0, 1, 1, 1])


def test_keys_are_renamed_and_left_out(source: Store, tmp_path: Path) -> None:
    (store,) = run(source, tmp_path / "out.zarr", rename={"position": "image", "image": "front"})
    assert store.observation_spec is not None
    assert source.observation_spec is not None
    fields = source.observation_spec.fields
    assert dict(store.observation_spec.fields) == {"image": fields["position"], "front": fields["image"]}
    np.testing.assert_array_equal(store.read("front"), IMAGES)
    np.testing.assert_array_equal(store.read("image"), source.read("position"))
    (store,) = run(source, tmp_path / "less.zarr", dataset=SpecOptions(exclude=["image"]))
    assert store.keys == ("action", "position")


def test_what_the_options_say_about_the_data_is_stored(source: Store, tmp_path: Path) -> None:
    options = SpecOptions(names={"position": ["x", "y"]}, units={"action": "mm"}, control_hz=25)
    (store,) = run(source, tmp_path / "out.zarr", dataset=options, jpeg=95)
    assert store.observation_spec is not None
    assert store.action_spec is not None
    assert store.observation_spec.fields["position"].names == ("x", "y")
    assert (store.action_spec.control_hz, store.action_spec.dimensions[0].unit) == (25, "mm")
    assert 0 < np.abs(store.read("image").astype(int) - IMAGES).mean() < 3


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in LOSSY])
def test_every_format_is_read(name: str, tmp_path: Path) -> None:
    source = open_dataset(FORMATS[name](tmp_path))
    (store,) = run(source, tmp_path / "out.zarr", delete=[0])
    for key in ("state", "action"):
        np.testing.assert_array_equal(store.read(key), source.read(key)[7:])
    assert tuple(store.episode_lengths) == (4, 9)


def test_actions_become_deltas_and_absolute_again(tmp_path: Path) -> None:
    """By the observed value of the same name at the start of each episode, as trimmed."""
    episodes = [np.array([5, 5, 7, 10])[:, None], np.array([3.0, 4])[:, None]]
    source = record_actions(tmp_path / "source.zarr", episodes)
    named = SpecOptions(names={"state": ["a0"]}, reference="absolute")
    (delta,) = run(source, tmp_path / "delta.zarr", reference="delta", trim_idle=0.0, dataset=named)
    np.testing.assert_array_equal(delta.read("action")[:, 0], [5 - 1, 2, 3, 3, 1])
    assert delta.action_spec is not None
    assert delta.action_spec.dimensions[0].reference == "delta"
    (absolute,) = run(delta, tmp_path / "absolute.zarr", reference=["absolute"], rename={"state": "joints"})
    np.testing.assert_array_equal(absolute.read("action")[:, 0], [5, 7, 10, 3, 4])
    (relative,) = run(source, tmp_path / "relative.zarr", reference="relative", relative_to=["state.0"])
    np.testing.assert_array_equal(relative.read("action")[:, 0], [5, 4, 5, 7, 3, 3])


def test_rotations_are_converted(tmp_path: Path) -> None:
    turn = np.array([[0, 0, np.pi / 2, 8], [0, 0, 0, 9]])
    source = record_actions(tmp_path / "source.zarr", [turn])
    (store,) = run(
        source,
        tmp_path / "out.zarr",
        dataset=SpecOptions(rotations={"axis_angle": ["a0", "a1", "a2"]}),
        rotation="rotation_6d",
        reference=["absolute", "absolute", "absolute", "delta"],
    )
    np.testing.assert_allclose(store.read("action"), [[0, 1, 0, -1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 1]], atol=1e-6)
    assert store.action_spec is not None
    assert store.action_spec.names == (*(f"rotation_6d_{index}" for index in range(6)), "a3")
    assert [one.reference for one in store.action_spec.dimensions] == ["absolute"] * 6 + ["delta"]


def test_values_that_are_no_rotation_are_named_by_their_episode(tmp_path: Path) -> None:
    identity = np.array([[0, 0, 0, 1.0]])
    source = record_actions(tmp_path / "source.zarr", [identity, 3 * identity])
    options = SpecOptions(rotations={"quaternion_xyzw": [0, 1, 2, 3]})
    with pytest.raises(DatasetError, match=r"episode 1 cannot be converted: rotation 0 of 1 is none: the quaternion"):
        run(source, tmp_path / "out.zarr", rotation="axis_angle", dataset=options)
    assert nothing_but(tmp_path, "source.zarr")


def test_tasks_are_kept(tmp_path: Path) -> None:
    """The second data set's texts, one per time step, are trimmed with them."""
    spec = ActionSpec((ActionDimension("a", "m", "world"),), HZ)
    observed, actions = ObservationSpec({"state": ObservationField((1,))}), np.array([0, 0, 1, 2, 2, 2])[:, None]
    for name, task in (("first", "push"), ("second", list("abcdef"))):
        with StoreWriter(tmp_path / name, observation_spec=observed, action_spec=spec) as writer:
            writer.add_episode({"state": actions}, actions, task=task)
    sources = [Store.open(tmp_path / name) for name in ("first", "second")]
    (store,) = run(sources, tmp_path / "out.zarr", trim_idle=0.1)
    assert store.task_indices is not None
    assert [store.tasks[index] for index in store.task_indices] == ["push"] * 4 + list("bcde")


# What is refused. Nothing is left then.


def record_actions(path: Path, episodes: Sequence[np.ndarray]) -> Store:
    """Time step k of each episode has the state (k,)."""
    spec = ActionSpec(tuple(ActionDimension(f"a{i}", "m", "world") for i in range(episodes[0].shape[1])), HZ)
    with StoreWriter(
        path, observation_spec=ObservationSpec({"state": ObservationField((1,))}), action_spec=spec
    ) as writer:
        for actions in episodes:
            writer.add_episode({"state": np.arange(len(actions))[:, None]}, actions)
    return Store.open(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delete": [4]}, "episodes are numbered 0 to 3"),
        ({"delete": [":"]}, "no episode of 4 would be left"),
        ({"split": {"a": 0.9, "b": 0.2}}, "at most 1 in total"),
        ({"trim_idle": -0.1}, "trim_idle=-0.1 must be a fraction"),
        ({"trim_idle": float("nan")}, "trim_idle=nan must be a fraction"),
        ({"reference": "delt"}, "reference=delt must be absolute, delta, relative"),
        ({"reference": "relative"}, "x cannot be changed from absolute to relative without an observed value"),
        ({"relative_to": ["position.0"]}, "relative_to is for reference="),
        ({"reference": "delta", "relative_to": ["position.2"]}, "relative_to: expected an observed value as KEY.NAME"),
        ({"rotation": "rotation_6d"}, "no action dimension is part of a rotation"),
        ({"rename": {"depth": "image"}}, "no observation 'depth' to rename; there are position, image"),
        ({"rename": {"position": "image"}}, "two observations would be called 'image'"),
        ({"rename": {"position": "a", "image": "a"}}, "two observations would be called 'a'"),
        ({"rename": {"position": "action"}}, "rename.position=action cannot be the name"),
        ({"rename": {"position": "a/b"}}, "rename.position=a/b cannot be the name"),
        ({"rename": {"position": ""}}, "rename.position= cannot be the name"),
        ({"jpeg": 0}, "jpeg=0 must be a quality"),
    ],
)
def test_options_that_do_not_fit(source: Store, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run(source, tmp_path / "out.zarr", **options)
    assert nothing_but(tmp_path, "source.zarr")


def test_merged_data_sets_have_equal_specifications(source: Store, tmp_path: Path) -> None:
    other = record(tmp_path / "other.zarr", IMAGES, LENGTHS)
    options = SpecOptions()
    first = derive_specs(source, options)
    less = derive_specs(other, SpecOptions(exclude=["image"]))
    slower = derive_specs(other, SpecOptions(control_hz=5))
    named = derive_specs(other, SpecOptions(names={"position": ["x", "y"]}))
    for specs, message in (
        ([first, less], r"source.zarr needs the observation 'image', but .*other.zarr only has"),
        ([less, first], r"other.zarr needs the observation 'image', but .*source.zarr only has"),
        ([first, slower], r"control rates differ: .*source.zarr has 10.0 Hz, but .*other.zarr has 5 Hz"),
        ([first, first, named], r"observation 'position' differs: .*source.zarr has names=\(\), but .*other.zarr has"),
    ):
        sources = [source, *[other] * (len(specs) - 1)]
        with pytest.raises(SpecMismatchError, match=message):
            edit(sources, specs, EditOptions(), tmp_path / "out.zarr")
    assert nothing_but(tmp_path, "source.zarr", "other.zarr")


def test_nothing_is_overwritten(source: Store, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"source.zarr exists already"):
        run(source, source.path)
    (tmp_path / "out_b.zarr").mkdir()
    with pytest.raises(DatasetError, match=r"out_b.zarr exists already"):
        run(source, tmp_path / "out.zarr", split={"a": 2, "b": 2})
    assert nothing_but(tmp_path, "source.zarr", "out_b.zarr")


def test_damaged_images_are_named_or_left_out(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "source.zarr", IMAGES, LENGTHS)
    chunk_files(source, "img")[1].unlink()  # frames 4 to 7, of episodes 0 and 1
    options = SpecOptions(control_hz=HZ, observe=["position", "image"])
    with pytest.raises(DatasetError, match=r"episode 0, frame 4 of data/img .*--skip-corrupt"):
        run(source, tmp_path / "out.zarr", dataset=options)
    assert nothing_but(tmp_path, "source.zarr")
    said: list[str] = []
    (store,) = run(source, tmp_path / "out.zarr", dataset=options, skip_corrupt=True, delete=[1], say=said)
    np.testing.assert_array_equal(store.read("action")[:, 0], rows_of(2, 3))
    assert "left out 1 of 4 episodes with frames that cannot be read: episode 0 (frame 4 of data/img" in said[0]
    assert said[1].startswith("kept 2 of 4 episodes, 10 of 18 frames")


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_damage_found_in_the_last_part_leaves_no_part(tmp_path: Path, skip_corrupt: bool) -> None:
    """Of values, which are never skipped; the first part is finished by then."""
    source = record(tmp_path / "source.zarr", IMAGES, LENGTHS)
    parts = run(source, tmp_path / "probe.zarr", split={"a": 2, "b": 2})
    row = int(parts[1].read("action")[0, 0])
    zarr.open_array(source.path, path="data/position", mode="r+")[row, 0] = np.nan
    with pytest.raises(DatasetError, match=r"data/position .* NaN or infinity"):
        run(Store.open(source.path), tmp_path / "out.zarr", split={"a": 2, "b": 2}, skip_corrupt=skip_corrupt)
    assert nothing_but(tmp_path, "source.zarr", "probe_a.zarr", "probe_b.zarr")


def test_a_part_of_damaged_episodes_only(tmp_path: Path) -> None:
    source = write_foreign(tmp_path / "source.zarr", IMAGES, LENGTHS)
    chunk_files(source, "img")[1].unlink()
    options = SpecOptions(control_hz=HZ, observe=["image"])
    with pytest.raises(DatasetError, match="nothing was recorded"):
        run(source, tmp_path / "out.zarr", keep=[0], skip_corrupt=True, dataset=options)
    assert nothing_but(tmp_path, "source.zarr")


def test_sources_are_not_changed(source: Store, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()}
    run(source, tmp_path / "out.zarr", trim_idle=0.5, rename={"position": "p"}, split={"a": 2})
    assert {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()} == before
