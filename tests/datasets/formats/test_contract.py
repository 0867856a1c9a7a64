"""The contract of all formats: lengths, keys, dtypes, any rows equal to the same rows of all, damage named by its episode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowchunk.datasets.derived_specs import SpecOptions, derive_specs
from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.datasets.image_reader import ImageReader
from flowchunk.datasets.windows import load_image_tensors, load_windows
from tests.datasets.formats.foreign import (
    ACTIONS,
    ENDS,
    FORMATS,
    FRAMES,
    HZ,
    IMAGES,
    LENGTHS,
    LOSSY,
    SIZE,
    STATES,
    task_indices,
)

CODEC_ERROR = 3.0  # mean absolute error of videos, of 255


@pytest.fixture(scope="module", params=FORMATS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EpisodeSource:
    return open_dataset(FORMATS[request.param](tmp_path_factory.mktemp("data")))


def is_lossy(source: EpisodeSource) -> bool:
    return "LeRobot" in source.format and source.files(camera(source))[1][0].suffix == ".mp4"


def camera(source: EpisodeSource) -> str:
    """The array of images."""
    return next(name for name, info in source.arrays.items() if info.is_image)


def options(source: EpisodeSource) -> SpecOptions:
    return SpecOptions(control_hz=None if source.description.control_hz else HZ)


def test_episodes(source: EpisodeSource) -> None:
    assert tuple(source.episode_lengths) == LENGTHS
    assert tuple(source.episode_ends) == tuple(ENDS)
    assert tuple(source.episode_starts) == (0, *ENDS[:-1])
    assert source.num_frames == FRAMES
    assert [source.place_of(row) for row in (0, 6, 7, FRAMES - 1)] == [(0, 0), (0, 6), (1, 0), (2, 8)]
    assert list(source.parts_of(5, 13)) == [(0, 5, 7), (1, 7, 11), (2, 11, 13)]


def test_values(source: EpisodeSource) -> None:
    np.testing.assert_array_equal(source.read("state"), STATES)
    np.testing.assert_array_equal(source.read(ACTION), ACTIONS)
    assert source.shape("state") == (2,)
    assert not source.is_image("state")
    assert set(source.keys) >= {"state", ACTION}


def test_keys_and_their_description(source: EpisodeSource) -> None:
    specs = derive_specs(source, options(source))
    images = specs.observation_spec.images
    assert {*specs.observation_spec.values} == {"state"}
    assert [field.shape for field in images.values()] == [(*SIZE, 3)]
    assert source.is_image(next(iter(images)))
    assert specs.observation_spec.fields["state"].shape == (2,)
    assert (specs.action_spec.size, specs.action_spec.control_hz) == (1, HZ)
    assert {*specs.origins} == {*specs.observation_spec.fields, ACTION, "control_hz"}


def test_images_are_rgb(source: EpisodeSource) -> None:
    key, field = next(iter(derive_specs(source, options(source)).observation_spec.images.items()))
    images = ImageReader.find(source, key, field).read(0, FRAMES)
    assert images.dtype == np.uint8
    assert images.shape == (FRAMES, *SIZE, 3)
    error = np.abs(images.astype(int) - IMAGES).mean()
    assert error < CODEC_ERROR if is_lossy(source) else error == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, FRAMES), st.integers(0, FRAMES)), min_size=1, max_size=4))
def test_any_rows_are_those_of_all(source: EpisodeSource, spans: list[tuple[int, int]]) -> None:
    """In any order, so also behind what was read last, and across the ends of episodes."""
    for name in (camera(source), "state", ACTION):
        every = source.read(name)
        assert len(every) == FRAMES
        for start, stop in spans:
            if start < stop:
                np.testing.assert_array_equal(source.read(name, start, stop), every[start:stop])


def test_rows_beyond_the_end_are_left_out(source: EpisodeSource) -> None:
    assert len(source.read("state", FRAMES - 2, FRAMES + 5)) == 2
    assert len(source.read("state", FRAMES + 2, FRAMES + 5)) == 0


def test_columns_and_joined_arrays(source: EpisodeSource) -> None:
    sources = {"y": "state[1:]", "all": "state[:1] + action + state"}
    other = open_dataset(source.path, sources=sources)
    np.testing.assert_array_equal(other.read("y", 3, 9), STATES[3:9, 1:])
    np.testing.assert_array_equal(other.read("all"), np.concatenate([STATES[:, :1], ACTIONS, STATES], axis=1))
    assert (other.shape("y"), other.shape("all")) == ((1,), (4,))


def test_images_can_be_scaled(source: EpisodeSource) -> None:
    small = open_dataset(source.path, image_size=(16, 24))
    key, field = next(iter(derive_specs(small, options(source)).observation_spec.images.items()))
    assert field.shape == small.shape(key) == (16, 24, 3)
    images = ImageReader.find(small, key, field).read(0, FRAMES)
    means = IMAGES.reshape(FRAMES, 16, 2, 24, 2, 3).mean(axis=(2, 4))
    assert np.abs(images - means).mean() < CODEC_ERROR


def test_an_array_that_is_missing_is_named_with_those_that_are_there(source: EpisodeSource) -> None:
    with pytest.raises(DatasetError, match=r"no array .*none_such.*it has \['act"):
        source.read("none_such")


def test_windows_are_the_same_in_every_format(source: EpisodeSource, tmp_path: Path) -> None:
    """Cut with images, through a cache that a second source of the same files uses again."""
    specs = derive_specs(source, options(source))
    cache = ImageCacheOptions(mode="disk", directory=tmp_path)
    images = load_image_tensors(source, specs.observation_spec, cache, say=None)
    windows = load_windows(
        source,
        specs.observation_spec,
        specs.action_spec,
        episodes=[0, 2],
        observation_steps=2,
        horizon=4,
        images=images,
    )
    assert len(windows) == LENGTHS[0] + LENGTHS[2]
    batch = windows.batch(torch.tensor([1, LENGTHS[0]]))  # of the first episode, and the start of the third
    first = int(ENDS[1])
    np.testing.assert_array_equal(batch["observation.state"], STATES[[[0, 1], [first, first]]])
    np.testing.assert_array_equal(batch["action"], ACTIONS[[[1, 2, 3, 4], [first, first + 1, first + 2, first + 3]]])
    key = next(iter(specs.observation_spec.images))
    gathered = batch[f"observation.{key}"].numpy().astype(int)
    assert np.abs(gathered - IMAGES[[[0, 1], [first, first]]]).mean() < CODEC_ERROR
    said: list[str] = []
    load_image_tensors(open_dataset(source.path), specs.observation_spec, cache, say=said.append)
    assert any("found in" in text for text in said)


def test_validation_episodes(source: EpisodeSource) -> None:
    expected = {"robomimic HDF5": [1], "LeRobot v2.0": [2], "LeRobot v2.1": [2], "LeRobot v3.0": [2]}.get(source.format)
    found = source.validation_episodes
    assert (None if found is None else found.tolist()) == expected


def test_tasks_are_one_hot(source: EpisodeSource) -> None:
    if "LeRobot" not in source.format:
        assert (source.tasks, source.task_indices) == ((), None)
        with pytest.raises(DatasetError, match="stores no tasks"):
            derive_specs(source, SpecOptions(condition_on_task=True, control_hz=HZ))
        return
    assert source.tasks == ("push", "pull")
    np.testing.assert_array_equal(source.read("task"), np.eye(2)[task_indices()])
    specs = derive_specs(source, SpecOptions(condition_on_task=True))
    assert specs.observation_spec.fields["task"].names == ("push", "pull")


def test_lossy_formats_are_those_with_videos() -> None:
    assert set(LOSSY) < set(FORMATS)
