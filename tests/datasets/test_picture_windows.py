"""Windows of pictures: which frames they hold, in the mirror too, and which episodes they leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.frame_cache import FrameCacheOptions
from flowchunk.datasets.specs import ObservationField, ObservationSpec
from flowchunk.datasets.store import Store
from flowchunk.datasets.symmetry import PICTURE_MIRRORS, Mirror, Symmetry
from flowchunk.datasets.windows import Windows, held_bytes, load_pictures, load_windows, mirrored
from tests.datasets.picture_stores import ACTIONS, chunk_files, open_others, record, smooth_pictures, write_others

LENGTHS = (30, 10, 40)
PICTURES = smooth_pictures(80, (8, 8))
VALUES = {
    "position": Mirror(order=(1, 0), sign=(-1.0, -1.0), offset=(0.0, 0.0)),
    "action": Mirror(order=(0,), sign=(-1.0,), offset=(0.0,)),
}
PUSHT = Path(__file__).parents[3] / "shared" / "data" / "pusht" / "pusht_cchi_v7_replay.zarr"


def spec_of(store: Store) -> ObservationSpec:
    assert store.observation_spec is not None
    return store.observation_spec


def load(
    store: Store, cache: Path, episodes: Any = (0, 1, 2), *, mode: str = "disk", spec: Any = None, **options: Any
) -> Windows:
    spec = spec or spec_of(store)
    skip = options.pop("skip_corrupt", False)
    pictures = load_pictures(store, spec, FrameCacheOptions(mode, cache, skip_corrupt=skip), say=None)
    cut: dict[str, Any] = {"episodes": episodes, "observation_steps": 2, "horizon": 4}
    return load_windows(store, spec, ACTIONS, pictures=pictures, **{**cut, **options})


@pytest.mark.parametrize("mode", ["disk", "ram"])
@given(
    indices=st.lists(st.integers(0, 49), min_size=1, max_size=9),
    observation_steps=st.integers(1, 4),
)
@settings(max_examples=10, deadline=None)
def test_each_window_holds_the_pictures_of_its_frames(
    tmp_path_factory: pytest.TempPathFactory, mode: str, indices: list[int], observation_steps: int
) -> None:
    base = tmp_path_factory.getbasetemp()
    path = base / "windows.zarr"
    store = Store.open(path) if path.exists() else record(path, PICTURES, LENGTHS)
    windows = load(store, base / "cache", [1, 2], mode=mode, observation_steps=observation_steps)
    assert len(windows) == 50
    batch = windows.batch(torch.tensor(indices))
    frames = batch["observation.position"][..., 0].long()  # frame k holds k
    assert batch["observation.image"].shape == (len(indices), observation_steps, 8, 8, 3)
    assert batch["observation.image"].dtype == torch.uint8
    np.testing.assert_array_equal(batch["observation.image"], PICTURES[frames.numpy()])


@pytest.mark.parametrize("name", PICTURE_MIRRORS)
def test_images_in_the_mirror_stand_behind_the_recorded_frames(tmp_path: Path, name: str) -> None:
    store = record(tmp_path / "demos.zarr", PICTURES, LENGTHS)
    symmetry = Symmetry(VALUES, {"image": PICTURE_MIRRORS[name]})
    plain = load(store, tmp_path / "cache", [0, 2]).batch(torch.arange(70))
    both = load(store, tmp_path / "cache", [0, 2], symmetry=symmetry)
    assert len(both) == 140
    order = torch.randperm(140, generator=torch.Generator().manual_seed(0))
    batch = both.batch(order)
    recorded, image = batch["observation.image"][order < 70], batch["observation.image"][order >= 70]
    torch.testing.assert_close(recorded, plain["observation.image"][order[order < 70]])
    expected = plain["observation.image"][order[order >= 70] - 70]
    x, y = (3, 2)  # a batch's axes: window, step, row, column, colour
    by_name = {
        "flip_x": expected.flip(x),
        "flip_y": expected.flip(y),
        "transpose": expected.transpose(x, y),
        "anti_transpose": expected.transpose(x, y).flip(x, y),
    }
    assert torch.equal(image, by_name[name])
    assert not torch.equal(image, expected)


def numbered(height: int, width: int) -> torch.Tensor:
    """A picture (1, H, W, 1) whose pixels hold their own numbers."""
    return torch.arange(height * width).reshape(1, height, width, 1)


def test_the_anti_transpose_moves_each_pixel_as_it_says() -> None:
    height = width = 5
    image = mirrored(numbered(height, width), PICTURE_MIRRORS["anti_transpose"])[0, ..., 0]
    for row in range(height):
        for column in range(width):
            assert image[width - 1 - column, height - 1 - row] == row * width + column


@given(st.sampled_from(sorted(PICTURE_MIRRORS)), st.integers(1, 9), st.integers(1, 9))
def test_a_mirror_applied_twice_is_the_identity(name: str, height: int, width: int) -> None:
    mirror = PICTURE_MIRRORS[name]
    width = height if mirror.transpose else width
    assert torch.equal(mirrored(mirrored(numbered(height, width), mirror), mirror), numbered(height, width))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (8, 8, 3), r"dataset\.symmetry must say how \['image'\] look"),
        ({"image": {"picture": "turn"}}, (8, 8, 3), r"'image' is a picture; give \{picture: NAME\} .*anti_transpose"),
        ({"image": {"picture": ["flip_x"]}}, (8, 8, 3), "is a picture"),
        ({"image": "flip_x"}, (8, 8, 3), "is a picture"),
        ({"image": {"order": [0], "sign": [1], "offset": [0]}}, (8, 8, 3), "is a picture"),
        (
            {"image": {"picture": "transpose"}},
            (6, 8, 3),
            "exchanges rows and columns, but pictures of 6x8 are not square",
        ),
        ({"image": {"picture": "anti_transpose"}}, (6, 8, 3), "not square; use flip_x or flip_y"),
    ],
)
def test_a_mirror_that_a_picture_cannot_have(options: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Symmetry.from_options(options, {}, {"image": shape})


def test_a_picture_that_is_not_square_may_be_flipped() -> None:
    symmetry = Symmetry.from_options({"image": {"picture": "flip_x"}}, {}, {"image": (6, 8, 3)})
    assert symmetry.pictures == {"image": PICTURE_MIRRORS["flip_x"]}


def test_dropped_episodes_leave_all_windows(tmp_path: Path) -> None:
    path = tmp_path / "demos.zarr"
    chunk_files(write_others(path, PICTURES.astype(np.float32), LENGTHS), "img")[8].unlink()  # episode 1
    spec = ObservationSpec({"position": ObservationField((2,)), "image": ObservationField((8, 8, 3), camera="front")})
    with pytest.raises(DatasetError, match="episode 1, frame 2"):
        load(open_others(path), tmp_path / "cache", spec=spec)
    for episodes, left in (([0, 1, 2], 70), ([1], 0), ([2], 40)):
        assert len(load(open_others(path), tmp_path / "cache", episodes, spec=spec, skip_corrupt=True)) == left


def test_bytes_are_those_in_memory_and_count_once(tmp_path: Path) -> None:
    store = record(tmp_path / "demos.zarr", PICTURES, LENGTHS)
    values = 80 * (2 + 1) * 4
    assert load(store, tmp_path / "cache").nbytes == values
    in_memory = load(store, tmp_path / "cache", mode="ram")
    assert in_memory.nbytes == values + PICTURES.nbytes
    other = load_windows(
        store,
        spec_of(store),
        ACTIONS,
        episodes=[0],
        observation_steps=1,
        horizon=1,
        pictures=in_memory.pictures,
    )
    assert held_bytes(in_memory, other) == 2 * values + PICTURES.nbytes


def test_without_options_they_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = record(tmp_path / "demos.zarr", PICTURES, LENGTHS)
    windows = load_windows(store, spec_of(store), ACTIONS, episodes=[0], observation_steps=1, horizon=1)
    assert len(windows) == 30
    assert len(list((tmp_path / "cache" / "flowchunk").glob("*.npy"))) == 1


# Push-T.


MIRROR = Mirror((1, 0, 3, 2, 4), (-1.0,) * 5, (512.0, 512.0, 512.0, 512.0, np.pi / 2))


@pytest.mark.skipif(not PUSHT.exists(), reason=f"needs {PUSHT}")
def test_the_mirrored_picture_is_that_of_the_mirrored_state() -> None:
    """A recorded frame in the mirror, against the environment's drawing of the mirrored state."""
    store = Store.open(PUSHT)
    mirror = PICTURE_MIRRORS["anti_transpose"]
    env = gymnasium.make("flowchunk.envs:flowchunk/PushT-v1", render_mode="rgb_array", render_size=96)
    errors, unmirrored = [], []
    for frame in np.linspace(50, store.frames - 50, 20).astype(int):
        picture = store.read("img", frame, frame + 1)
        env.reset(options={"state": MIRROR(store.read("state", frame, frame + 1).astype(np.float64))[0]})
        drawn = np.asarray(env.render())
        errors.append(np.abs(mirrored(torch.from_numpy(picture), mirror).numpy()[0] - drawn).mean())
        unmirrored.append(np.abs(picture[0] - drawn).mean())
    env.close()
    assert np.mean(errors) < 1.5  # measured: 0.53, the worst 0.72; unmirrored 4.04
    assert np.mean(errors) < 0.4 * np.mean(unmirrored)
