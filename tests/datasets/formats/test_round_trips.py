"""Every format that is written is read back as it was, through every other: values, specifications, tasks, boundaries."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.datasets.convert import convert
from flowchunk.datasets.derived_specs import derive_specs
from flowchunk.datasets.episode_source import EpisodeSource
from flowchunk.datasets.errors import ConfigurationError, DatasetError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.formats.writing import TARGETS
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.windows import load_windows
from flowchunk.policy.demonstrations import DatasetOptions, load_demonstrations
from flowchunk.policy.fitting import new_policy
from flowchunk.policy.policy_config import PolicyConfig
from tests.datasets.formats.episodes import ACTIONS, LENGTHS, OBSERVATIONS, TASK_TEXTS, everything, write
from tests.datasets.formats.foreign import FRAMES, write_lerobot_3, write_robomimic

SUFFIX = {"robomimic": ".hdf5"}


def converted(source: EpisodeSource, folder: Path, to: str, **options: Any) -> tuple[EpisodeSource, str]:
    said: list[str] = []
    out = folder / f"{source.path.stem}-{to}{SUFFIX.get(to, '')}"
    if to == "lerobot":
        options = {"codec": "png", **options}
    specs = derive_specs(source)
    convert(source, specs.observation_spec, specs.action_spec, out, to=to, say=said.append, **options)
    return open_dataset(out), "\n".join(said)


@pytest.fixture
def original(tmp_path: Path) -> EpisodeSource:
    return open_dataset(write(StoreWriter, tmp_path / "original"))


@pytest.mark.parametrize(("first", "second"), [*product(TARGETS, TARGETS)])
def test_nothing_is_lost_on_the_way(first: str, second: str, original: EpisodeSource, tmp_path: Path) -> None:
    on_the_way, _ = converted(original, tmp_path, first)
    source, _ = converted(on_the_way, tmp_path, second)
    assert source.observation_spec == OBSERVATIONS
    assert source.action_spec == ACTIONS
    assert tuple(source.episode_lengths) == LENGTHS
    expected = everything()
    for key, values in expected.observations.items():
        got = source.read(key)
        assert got.dtype == (np.uint8 if key == "front" else np.float32)
        np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(source.read("action"), expected.actions)
    indices = source.task_indices
    assert indices is not None
    assert [source.tasks[index] for index in indices] == TASK_TEXTS


@pytest.mark.parametrize("to", TARGETS)
def test_windows_and_loss_are_the_same_bit_for_bit(to: str, original: EpisodeSource, tmp_path: Path) -> None:
    losses, batches = [], []
    for source in (original, converted(original, tmp_path, to)[0]):
        specs = derive_specs(source)
        options = DatasetOptions(validation_fraction=0.4)
        data = load_demonstrations(
            source,
            (specs.observation_spec, specs.action_spec),
            options,
            observation_steps=2,
            horizon=4,
            seed=0,
            say=None,
        )
        config = PolicyConfig(
            horizon=4,
            n_action_steps=2,
            network_options={"width": 16, "blocks": 1},
            vision="small_conv",
            vision_options={"widths": [8, 8]},
        )
        policy = new_policy(source, config, (specs.observation_spec, specs.action_spec), options, data, seed=0)
        batch = data.training.batch(torch.arange(6))
        noise = policy.sample_noise(6, torch.Generator().manual_seed(0))
        losses.append(policy.loss(batch, noise).mean())
        batches.append(batch)
    assert torch.equal(*losses)
    assert batches[0].keys() == batches[1].keys()
    assert all(torch.equal(values, batches[1][name]) for name, values in batches[0].items())


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_videos_stay_within_their_codecs_error(codec: str, original: EpisodeSource, tmp_path: Path) -> None:
    source, said = converted(original, tmp_path, "lerobot", codec=codec)
    error = np.abs(source.read("front").astype(int) - everything().observations["front"])
    assert 0 < error.mean() < 2
    assert f"images become {codec} video, which is lossy; codec=png is exact" in said
    np.testing.assert_array_equal(source.read("state"), everything().observations["state"])


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    lerobot = open_dataset(write_lerobot_3(tmp_path, codec="png"))
    _, said = converted(lerobot, tmp_path, "flowchunk")
    assert "not converted: next.done, task_index" in said
    assert "the split of the episodes is not stored in the format flowchunk" in said
    assert "other specifications stand beside the data" not in said
    robomimic, said = converted(lerobot, tmp_path, "robomimic")
    assert "split" not in said
    assert "specifications stand beside the data, where only flowchunk reads them" in said
    assert robomimic.validation_episodes is not None
    assert robomimic.validation_episodes.tolist() == [2]
    (tmp_path / "again").mkdir()
    _, said = converted(lerobot, tmp_path / "again", "robomimic", skip_corrupt=True)
    assert "the split of the episodes is not stored, because episodes with damaged images are left out" in said


def test_rounding_is_said(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a", observation_spec=OBSERVATIONS, action_spec=ACTIONS) as writer:
        episode = everything()
        writer.add_episode(episode.observations, episode.actions)
    _, said = converted(open_dataset(tmp_path / "a"), tmp_path, "robomimic")
    assert "rounded" not in said
    source = open_dataset(write_robomimic(tmp_path, dtype=np.float64))
    specs = derive_specs(source)
    texts: list[str] = []
    convert(source, specs.observation_spec, specs.action_spec, tmp_path / "b", say=texts.append)
    assert "rounded from float64 to float32: actions, obs/state" in "\n".join(texts)


@pytest.mark.parametrize("to", TARGETS)
def test_an_existing_target_is_never_overwritten(to: str, original: EpisodeSource, tmp_path: Path) -> None:
    out = tmp_path / f"out{SUFFIX.get(to, '')}"
    out.write_text("precious")
    specs = derive_specs(original)
    with pytest.raises(DatasetError, match="exists already"):
        convert(original, specs.observation_spec, specs.action_spec, out, to=to, say=lambda _: None)
    assert out.read_text() == "precious"


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing(
    kind: type[BaseException], to: str, original: EpisodeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {*tmp_path.iterdir()}
    read = type(original).read_array

    def fail_in_the_second_episode(self: EpisodeSource, name: str, start: int, stop: int) -> np.ndarray:
        if start > 0:
            raise kind
        return read(self, name, start, stop)

    monkeypatch.setattr(type(original), "read_array", fail_in_the_second_episode)
    specs = derive_specs(original)
    out = tmp_path / f"out{SUFFIX.get(to, '')}"
    with pytest.raises(kind):
        convert(original, specs.observation_spec, specs.action_spec, out, to=to, say=lambda _: None)
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"to": "rlds"},
            "to=rlds is no format that is written; there are flowchunk, diffusion_policy, robomimic, lerobot",
        ),
        ({"to": "lerobot", "jpeg": 90}, "jpeg=90 is for to=flowchunk, but to=lerobot"),
        ({"to": "flowchunk", "codec": "av1"}, "codec=av1 is for to=lerobot, but to=flowchunk"),
        ({"to": "lerobot", "codec": "vp9"}, "codec='vp9' must be one of"),
        ({"to": "robomimic"}, "out: a file of robomimic must end with"),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any], message: str, original: EpisodeSource, tmp_path: Path
) -> None:
    specs = derive_specs(original)
    with pytest.raises(ConfigurationError, match=message):
        convert(original, specs.observation_spec, specs.action_spec, tmp_path / "out", say=lambda _: None, **options)
    assert not (tmp_path / "out").exists()


def test_a_rate_that_the_format_cannot_hold(original: EpisodeSource, tmp_path: Path) -> None:
    specs = derive_specs(original)
    slow = type(specs.action_spec)(specs.action_spec.dimensions, 12.5)
    with pytest.raises(DatasetError, match=r"12\.5"):
        convert(original, specs.observation_spec, slow, tmp_path / "out", to="lerobot", say=lambda _: None)


def test_windows_of_a_converted_foreign_set_are_its_own(tmp_path: Path) -> None:
    source = open_dataset(write_lerobot_3(tmp_path, codec="png"))
    other, _ = converted(source, tmp_path, "robomimic")
    specs = derive_specs(source)
    for one in (source, other):
        windows = load_windows(
            one, specs.observation_spec, specs.action_spec, episodes=[0, 1, 2], observation_steps=1, horizon=2
        )
        assert len(windows) == FRAMES
