"""Policies from images that estimate where the block lies, from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import zarr

from flowchunk.cli.main import main
from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.windows import Windows
from flowchunk.envs.control.safety import PolicyFacts
from flowchunk.envs.tasks.pusht import RECORDED_SPEC
from flowchunk.policy.checkpoint import find_checkpoint
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.flow import Loss
from flowchunk.policy.noise import PolicyNoise
from flowchunk.policy.planar_frame import LANDMARKS
from flowchunk.policy.training.run_log import read_metrics
from tests.cli.test_images import TINY, weights

LENGTHS = (14, 10, 12)


@pytest.fixture(autouse=True)
def cached_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never in the home directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random pushing, as diffusion_policy records it: images, and the state of pusher and block."""
    path = tmp_path_factory.mktemp("stores") / "recorded.zarr"
    seen, known = (gymnasium.make("flowchunk.envs:flowchunk/PushT-v1", observation=kind) for kind in ("image", "state"))
    seen.action_space.seed(0)
    images, states, actions = [], [], []
    for seed, length in enumerate(LENGTHS):
        image, state = seen.reset(seed=seed)[0]["image"], known.reset(seed=seed)[0]["state"]
        for _ in range(length):
            images.append(image)
            states.append(state)
            actions.append(seen.action_space.sample())
            image, state = seen.step(actions[-1])[0]["image"], known.step(actions[-1])[0]["state"]
    seen.close()
    known.close()
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for name, rows in (("img", images), ("state", states), ("action", actions)):
        values = np.stack(rows).astype(np.float32)
        root.create_array(f"data/{name}", shape=values.shape, chunks=(16, *values.shape[1:]), dtype="f4")[:] = values
    root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    return path


def train(store: Path, run: Path, *more: str) -> list[str]:
    return ["train", "task=pusht_image_pose", f"dataset.path={store}", f"output_dir={run}", *TINY, *more]


@pytest.fixture(scope="module")
def run(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert main(train(recorded, folder)) == 0
    return folder


def test_a_policy_learns_to_see_the_block_and_acts_without_being_told(run: Path, tmp_path: Path) -> None:
    policy = ChunkPolicy.load(run)
    assert policy.estimated_spec == RECORDED_SPEC
    assert set(policy.observation_spec.fields) == {"image", "agent_position"}
    assert set(PolicyFacts.of_checkpoint(find_checkpoint(run)).observation_spec.fields) == {"image", "agent_position"}
    options = ["episodes=2", "video=0", "env.max_episode_steps=6", "env.goal_pose=[200,300,0.5]"]
    assert main(["eval", str(run), f"output_dir={tmp_path / 'eval'}", *options]) == 0


def test_the_errors_of_estimates_are_logged_and_on_the_page(recorded: Path, tmp_path: Path) -> None:
    assert main(train(recorded, tmp_path / "run", "dataset.validation_fraction=0.4")) == 0
    errors = {
        name: [
            entry[f"estimation_error.block_pose.{name}"] for entry in read_metrics(tmp_path / "run") if "score" in entry
        ]
        for name in ("block_x", "block_y", "block_angle")
    }
    assert all(len(values) > 0 and min(values) > 0 for values in errors.values())
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    best = ChunkPolicy.load(tmp_path / "run")
    assert best.estimated_spec == RECORDED_SPEC
    assert "block_pose (estimated)" in page
    for name, unit in (("block_x", "px"), ("block_y", "px"), ("block_angle", "rad")):
        row = re.search(rf"<td>block_pose.{name}</td><td>([^<]+)</td><td class=\"left\">{unit}<", page)
        assert row is not None
        assert float(row[1]) in [pytest.approx(value, rel=0.01) for value in errors[name]]


def test_errors_are_those_of_held_out_episodes_seen_in_hindsight(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Windows] = []

    def noted(evaluate: Any, validation: Windows) -> Any:
        given.append(validation)
        return evaluate

    monkeypatch.setattr("flowchunk.policy.fitting.with_estimation_errors", noted)
    assert main(train(recorded, tmp_path / "run", "dataset.validation_fraction=0.4")) == 0
    (held_out,) = given
    assert len(held_out) in [2 * length for length in LENGTHS], "one episode and its mirror image, not the other two"
    goals = held_out.of_windows[LANDMARKS]
    ends = held_out.observations["block_pose"][held_out.last]
    torch.testing.assert_close(goals[:, 0], ends)


def test_without_held_out_episodes_there_are_no_errors_of_estimates(recorded: Path, tmp_path: Path) -> None:
    assert main(train(recorded, tmp_path / "run", "dataset.validation_fraction=0")) == 0
    assert not [
        name for entry in read_metrics(tmp_path / "run") for name in entry if name.startswith("estimation_error")
    ]


def test_only_some_rows_have_images_and_poses_have_no_history(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    loss = ChunkPolicy.loss

    def watched(self: ChunkPolicy, batch: dict[str, torch.Tensor], noise: PolicyNoise) -> Loss:
        seen.append(batch)
        return loss(self, batch, noise)

    monkeypatch.setattr(ChunkPolicy, "loss", watched)
    assert main(train(recorded, tmp_path / "run", "policy.estimate_every=4", "dataset.validation_fraction=0.4")) == 0
    batches = [batch for batch in seen if len(batch["observation.image"]) != len(batch["action"])]
    assert len(batches) >= 4
    assert {(len(batch["observation.image"]), len(batch["action"])) for batch in batches} == {(2, 8)}
    assert len(batches) < len(seen), "validation has all images"
    for batch in seen:
        poses, positions = batch["observation.block_pose"], batch["observation.agent_position"]
        assert torch.equal(poses, poses[:, -1:].expand_as(poses))
    assert not torch.equal(positions, positions[:, -1:].expand_as(positions))


def test_rows_with_images_must_fit_the_batch(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["policy.estimate_every=4", "training.num_micro_batches=4"]
    assert main(train(recorded, tmp_path / "run", *more)) == 1
    assert "policy.estimate_every=4: expected a divisor of the 2 rows" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_open_loop_errors_need_recorded_poses(
    recorded: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = tmp_path / "without.zarr"
    assert main(["data", "convert", str(recorded), str(without), "task=pusht_image"]) == 0
    assert main(["eval", str(run), f"dataset.path={without}", f"output_dir={tmp_path / 'open'}"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the open-loop evaluation of the policy needs the observation 'block_pose'" in said


def test_own_data_with_estimates_are_not_cropped(recorded: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.zarr"
    assert main(["data", "convert", str(recorded), str(out), "task=pusht_image_pose"]) == 0
    command = ["train", "task=own", f"dataset.path={out}", f"output_dir={tmp_path / 'run'}", *TINY]
    assert main([*command, "policy.estimated=[block_pose]"]) == 0
    policy = ChunkPolicy.load(tmp_path / "run")
    assert policy.estimated_spec == RECORDED_SPEC
    assert policy.observation_spec.fields["image"].crop is None


def test_what_is_estimated_is_converted_with_the_data(recorded: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.zarr"
    assert main(["data", "convert", str(recorded), str(out), "task=pusht_image_pose"]) == 0
    spec = Store.open(out).observation_spec
    assert spec is not None
    assert spec.fields["block_pose"] == RECORDED_SPEC.fields["block_pose"]
    assert main(train(out, tmp_path / "run")) == 0
    found = weights(tmp_path / "run")
    assert all(torch.equal(values, found[name]) for name, values in weights(run).items())


def test_fine_tuning_goes_on_estimating(recorded: Path, run: Path, tmp_path: Path) -> None:
    options = [f"training.init_from={run}", "env.goal_pose=[200,300,0.5]", "dataset.symmetry=null"]
    own = [option for option in TINY if not option.startswith(("network", "policy", "vision"))]
    command = ["train", "task=pusht_image_pose", f"dataset.path={recorded}", f"output_dir={tmp_path / 'run'}"]
    assert main([*command, *own, *options]) == 0
    policy = ChunkPolicy.load(tmp_path / "run")
    assert policy.estimated_spec == RECORDED_SPEC
    assert policy.frame is not None
    assert policy.frame.landmarks == {"goal": (200.0, 300.0, 0.5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.sources.block_pose=poses"], "has no array data/poses"),
        (
            ["policy.estimated=[cube]"],
            "policy.estimated=['cube']: expected keys of the demonstrations that are not images, but there is no 'cube'",
        ),
        (
            ["policy.estimated=[]", "policy.estimate_every=1"],
            "but got 'block_pose.block_x'; there are agent_position.agent_x",
        ),
        (["env.observation=state"], "no images to estimate them from"),
    ],
)
def test_poses_that_nobody_recorded_are_refused(
    options: list[str], message: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train(recorded, tmp_path / "run", *options)) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
