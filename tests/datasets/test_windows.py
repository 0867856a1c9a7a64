"""Windows: their content, compared with a plain loop over frames, and the split of episodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.datasets.symmetry import Symmetry, ValueTransform
from flowchunk.datasets.windows import Windows, load_windows, split_episodes

OBSERVATIONS = ObservationSpec({"state": ObservationField((2,)), "force": ObservationField((1, 2))})
ACTIONS = ActionSpec((ActionDimension("x", "m", "world"),), control_hz=10.0)


def open_store(path: Path, lengths: list[int]) -> Store:
    """State and action of frame k contain k, which shows where windows were cut."""
    total = sum(lengths)
    k = np.arange(total, dtype=np.float32)
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.create_array("data/state", data=np.stack([k, -k], axis=1))
    root.create_array("data/force", data=np.stack([k, 2 * k], axis=1)[:, None].astype(np.float64))
    root.create_array("data/action", data=k[:, None])
    root.create_array("meta/episode_ends", data=np.cumsum(lengths))
    return Store.open(path)


def load(store: Store, episodes: Any, *, observation_steps: int = 2, horizon: int = 4, **options: Any) -> Windows:
    return load_windows(
        store,
        OBSERVATIONS,
        ACTIONS,
        episodes=episodes,
        observation_steps=observation_steps,
        horizon=horizon,
        **options,
    )


def naive(lengths: list[int], episodes: list[int], observation_steps: int, horizon: int) -> Iterator[Any]:
    """For each window: the frames observed, the frames whose actions it holds, and which of those are real."""
    for episode in episodes:
        start, stop = sum(lengths[:episode]), sum(lengths[: episode + 1])
        for k in range(start, stop):
            observed = [max(start, k - back) for back in reversed(range(observation_steps))]
            ahead = [min(stop - 1, k + step) for step in range(horizon)]
            yield observed, ahead, [k + step < stop for step in range(horizon)]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    episodes = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    return lengths, episodes, draw(st.integers(1, 4)), draw(st.integers(1, 12))


@given(cuts())
@settings(max_examples=40, deadline=None)
def test_windows_are_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[list[int], list[int], int, int]
) -> None:
    lengths, episodes, observation_steps, horizon = cut
    store = open_store(tmp_path_factory.mktemp("store") / "demos.zarr", lengths)
    windows = load(store, episodes, observation_steps=observation_steps, horizon=horizon)
    expected = list(naive(lengths, episodes, observation_steps, horizon))
    assert len(windows) == len(expected) == sum(lengths[episode] for episode in episodes)
    batch = windows.batch(torch.arange(len(windows)))
    observed, ahead, mask = (torch.tensor(values) for values in zip(*expected, strict=True))
    assert torch.equal(batch["observation.state"], torch.stack([observed, -observed], dim=-1).float())
    assert torch.equal(batch["observation.force"], torch.stack([observed, 2 * observed], dim=-1)[:, :, None].float())
    assert torch.equal(batch["action"], ahead[..., None].float())
    assert torch.equal(batch["mask"], mask)
    assert batch["mask"][:, 0].all()
    assert torch.equal(batch["observation.state"][:, -1, :1], batch["action"][:, 0])  # frame k is shared


@given(st.lists(st.integers(0, 11), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_batches_are_the_requested_windows(tmp_path_factory: pytest.TempPathFactory, indices: list[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "batches.zarr"
    windows = load(Store.open(path) if path.exists() else open_store(path, [5, 7]), [0, 1])
    batch, everything = windows.batch(torch.tensor(indices)), windows.batch(torch.arange(12))
    assert all(torch.equal(batch[key], everything[key][indices]) for key in everything)


@pytest.mark.parametrize("episodes", [[0, 2], (0, 2), np.array([0, 2]), range(0, 3, 2)])
def test_episodes_may_be_any_sequence(tmp_path: Path, episodes: Any) -> None:
    windows = load(open_store(tmp_path / "demos.zarr", [3, 4, 2]), episodes)
    assert windows.frames.tolist() == [0, 1, 2, 7, 8]


@pytest.mark.parametrize("symmetric", [False, True])
def test_no_episodes_are_no_windows(tmp_path: Path, symmetric: bool) -> None:
    store = open_store(tmp_path / "demos.zarr", [3, 4])
    _, validation = split_episodes(2, validation_fraction=0.0, seed=0)
    assert len(load(store, validation, symmetry=MIRROR if symmetric else None)) == 0


MIRROR = Symmetry(
    {
        "state": ValueTransform(order=(1, 0), sign=(1.0, 1.0), offset=(0.0, 0.0)),
        "force": ValueTransform(order=(0, 1), sign=(1.0, 1.0), offset=(0.0, 0.0)),
        "action": ValueTransform(order=(0,), sign=(-1.0,), offset=(100.0,)),
    }
)


def test_mirrored_episodes_follow_the_recorded_ones(tmp_path: Path) -> None:
    store = open_store(tmp_path / "demos.zarr", [3, 4, 2])
    options: dict[str, Any] = {"episodes": [0, 2], "observation_steps": 2, "horizon": 4}
    spec = ObservationSpec({"state": OBSERVATIONS.fields["state"]})
    recorded = load_windows(store, spec, ACTIONS, **options).batch(torch.arange(5))
    doubled = load_windows(store, spec, ACTIONS, symmetry=MIRROR, **options)
    assert len(doubled) == 10
    first, second = doubled.batch(torch.arange(5)), doubled.batch(torch.arange(5, 10))
    assert all(torch.equal(first[key], recorded[key]) for key in recorded)
    assert torch.equal(second["observation.state"], recorded["observation.state"].flip(-1))
    assert torch.equal(second["action"], 100 - recorded["action"])
    assert torch.equal(second["mask"], recorded["mask"])


@pytest.mark.parametrize(
    ("rotation", "identity"),
    [
        ("rotation_6d", [1, 0, 0, 0, 1, 0]),
        ("quaternion_xyzw", [0, 0, 0, 1]),
        ("quaternion_wxyz", [1, 0, 0, 0]),
        ("axis_angle", [0, 0, 0]),
        ("euler_xyz", [0, 0, 0]),
    ],
)
def test_a_motion_ends_with_its_episode(rotation: str, identity: list[int], tmp_path: Path) -> None:
    """After the end, targets are held; deltas would continue the motion, so they become no motion."""
    size = len(identity)
    names = ("target", "step", *(f"turn.{number}" for number in range(size)), "relative")
    references: tuple[Any, ...] = ("absolute", "delta", *("delta",) * size, "relative")
    rotations = (None, None, *(rotation,) * size, None)
    spec = ActionSpec(
        tuple(
            ActionDimension(name, "m", "world", reference=reference, rotation=rotation)
            for name, reference, rotation in zip(names, references, rotations, strict=True)
        ),
        control_hz=10.0,
    )
    actions = np.arange(1, 1 + 5 * spec.size, dtype=np.float32).reshape(5, spec.size)
    root = zarr.open_group(tmp_path / "demos.zarr", mode="w", zarr_format=3)
    for key, values in {"data/action": actions, "meta/episode_ends": np.array([3, 5])}.items():
        root.create_array(key, data=values)
    windows = load_windows(
        Store.open(tmp_path / "demos.zarr"), ObservationSpec({}), spec, episodes=[0, 1], observation_steps=1, horizon=4
    )
    batch, rest = windows.batch(torch.arange(5)), [0, *identity]
    for window, (start, end) in enumerate([(0, 2), (1, 2), (2, 2), (3, 4), (4, 4)]):
        for step in range(4):
            expected = actions[min(start + step, end)].copy()
            if start + step > end:
                expected[1 : 2 + size] = rest
            assert batch["mask"][window, step] == (start + step <= end)
            np.testing.assert_array_equal(batch["action"][window, step], expected)


def test_frames_are_stored_once(tmp_path: Path) -> None:
    windows = load(open_store(tmp_path / "demos.zarr", [50, 50]), [0, 1], horizon=16)
    assert windows.nbytes == 100 * (2 + 2 + 1) * 4
    assert all(values.dtype == torch.float32 for values in (*windows.observations.values(), windows.actions))


def test_shapes_that_the_task_does_not_expect(tmp_path: Path) -> None:
    store = open_store(tmp_path / "demos.zarr", [5])
    spec = ObservationSpec({"state": ObservationField((3,))})
    with pytest.raises(DatasetError, match=r"data/state in .* frames of shape \(2,\), but the task expects \(3,\)"):
        load_windows(store, spec, ACTIONS, episodes=[0], observation_steps=1, horizon=1)
    wide = ActionSpec(ACTIONS.dimensions * 2, control_hz=10.0)
    with pytest.raises(DatasetError, match=r"data/action in .* \(1,\), but the task expects \(2,\)"):
        load_windows(store, OBSERVATIONS, wide, episodes=[0], observation_steps=1, horizon=1)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    open_store(tmp_path / "demos.zarr", [5, 5])
    array = zarr.open_array(tmp_path / "demos.zarr", path="data/action", mode="r+")
    array[7] = np.nan
    with pytest.raises(DatasetError, match=r"data/action .* NaN or infinity, first in episode 1, frame 2"):
        load(Store.open(tmp_path / "demos.zarr"), [0])


# Which episodes train.


@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32))
def test_every_episode_trains_or_validates(episodes: int, fraction: float, seed: int) -> None:
    training, validation = split_episodes(episodes, validation_fraction=fraction, seed=seed)
    assert sorted([*training, *validation]) == list(range(episodes))
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()
    assert len(training) >= 1
    if fraction == 0 or episodes == 1:
        assert len(validation) == 0
    else:
        assert len(validation) >= 1
        assert abs(len(validation) - fraction * episodes) <= 1


def test_the_seed_determines_the_split() -> None:
    first, same, other = (split_episodes(100, validation_fraction=0.2, seed=seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    assert len(first) == 20
