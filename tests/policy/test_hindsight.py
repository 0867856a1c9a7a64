"""In hindsight a demonstration leads to where its object ended."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flowchunk.datasets.formats.zarr_store import Store
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.windows import memory_bytes
from flowchunk.policy.demonstrations import DatasetOptions
from flowchunk.policy.fitting import fit
from flowchunk.policy.hindsight import with_hindsight
from flowchunk.policy.planar_frame import FRAME, LANDMARKS, seen_in_training
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run_log import read_metrics
from tests.policy.test_planar_frame import ACTION, HORIZON, OBSERVATION, OPTIONS, make_frame, make_policy, make_windows


def test_in_hindsight_the_goal_is_where_the_object_ended() -> None:
    windows = make_windows(20)
    first = torch.where(windows.frames < 12, 0, 12)
    windows = replace(windows, first=first, last=torch.where(windows.frames < 12, 11, 19))
    frame = make_frame(
        {**OPTIONS, "landmarks": {"wall": [1.0, 2.0, 3.0], "goal": [0.0, 0.0, 0.0]}, "hindsight": ["goal"]}
    )
    found = with_hindsight(windows, frame)
    batch = found.batch(torch.arange(20))
    poses = batch[LANDMARKS]
    scene = windows.observations["scene"]
    torch.testing.assert_close(poses[:, 1], scene[windows.last, 3:6])
    torch.testing.assert_close(poses[:, 0], torch.tensor([1.0, 2.0, 3.0]).expand(20, 3))
    seen = seen_in_training(batch, frame.keys)
    last_of_all = frame.features(seen)[19]
    torch.testing.assert_close(last_of_all[4:6], torch.zeros(2), atol=1e-6, rtol=0)  # it lies at its goal
    moved_there = make_frame({**OPTIONS, "landmarks": {"wall": [1.0, 2.0, 3.0], "goal": scene[11, 3:6].tolist()}})
    plain = {key: value[:12] for key, value in seen.items() if key != LANDMARKS}
    torch.testing.assert_close(frame.features(seen)[:12], moved_there.features(plain))
    assert with_hindsight(windows, make_frame()) is windows
    assert with_hindsight(windows, None) is windows


def test_a_policy_learns_from_landmarks_in_hindsight() -> None:
    windows = make_windows(40)
    policy = make_policy(windows, hindsight=["goal"])
    noise = policy.sample_noise(40, torch.Generator().manual_seed(0))
    batches = [found.batch(torch.arange(40)) for found in (windows, with_hindsight(windows, policy.frame))]
    as_given, in_hindsight = (policy.loss(batch, noise).sums()[0] for batch in batches)
    assert not torch.allclose(as_given, in_hindsight)
    there = policy.with_landmarks({"goal": windows.observations["scene"][39, 3:6].tolist()})
    torch.testing.assert_close(there.loss(batches[0], noise).sums()[0], in_hindsight)


def test_landmarks_count_as_memory() -> None:
    windows = make_windows(20)
    found = with_hindsight(windows, make_frame({**OPTIONS, "hindsight": ["goal"]}))
    assert memory_bytes(found) == memory_bytes(windows) + 20 * 3 * 4


def test_training_is_in_hindsight_and_validation_is_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with StoreWriter(tmp_path / "data.zarr", observation_spec=OBSERVATION, action_spec=ACTION) as writer:
        for _ in range(4):
            scene, force = random.normal(size=(20, 7)).cumsum(0), random.normal(size=(20, 2))
            writer.add_episode({"scene": scene, "force": force}, random.normal(size=(20, 3)))
    training = TrainingConfig(steps=2, batch_size=8, log_every=1, evaluate_every=1)
    logged, means = [], []
    for names in ([], ["goal"]):
        config = PolicyConfig(
            network_options={"width": 16, "blocks": 1},
            horizon=HORIZON,
            n_action_steps=2,
            frame={**OPTIONS, "hindsight": names},
        )
        run = tmp_path / "-".join(["run", *names])
        options = DatasetOptions(validation_fraction=0.25)
        policy = fit(
            Store.open(tmp_path / "data.zarr"), config, training, output_dir=run, dataset=options, device="cpu"
        )
        logged.append({key: row[key] for row in read_metrics(run) for key in ("loss", "validation_loss") if key in row})
        means.append(policy.normalizer.scalings[FRAME].offset)
    assert not any(
        math.isclose(logged[0][key], logged[1][key]) for key in ("loss", "validation_loss")
    )  # of the last step
    goal = [2, 3]  # the second place after the hand
    assert not np.allclose(means[0][goal], means[1][goal])
    np.testing.assert_allclose(means[0][:2], means[1][:2], atol=1e-6)
