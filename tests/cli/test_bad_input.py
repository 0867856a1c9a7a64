"""Wrong input: one clear line as the error, which says what is wrong, where, and what to do; no file is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flowchunk.cli.main import main
from flowchunk.policy.chunk_policy import ChunkPolicy
from tests.cli.folders import contents


@dataclass(frozen=True)
class Places:
    """What is there, and a folder for what a test makes."""

    run: Path
    pusht: Path
    arm: Path
    folder: Path

    def train(self, *options: str, store: Path | None = None) -> list[str]:
        output = f"output_dir={self.folder / 'new'}"
        return ["train", "task=pusht_state", f"dataset.path={store or self.pusht}", output, "device=cpu", *options]

    def train_arm(self, *options: str) -> list[str]:
        return self.train("task=pickplace_state", *options, store=self.arm)

    def eval(self, *options: str, run: Path | None = None) -> list[str]:
        return ["eval", str(run or self.run), f"output_dir={self.folder / 'new'}", "video=0", "episodes=1", *options]

    def collect(self, *options: str) -> list[str]:
        return ["collect", "task=pickplace_state", f"output_dir={self.folder / 'new'}", "episodes=1", *options]

    @property
    def file(self) -> Path:
        """A file where a folder would be needed."""
        path = self.folder / "a_file"
        path.write_text("not a folder")
        return path


@pytest.fixture
def places(trained_run: Path, pusht_store: Path, pickplace_store: Path, tmp_path: Path) -> Iterator[Places]:
    """Afterwards the run and the stores are byte for byte what they were, and no new run was begun."""
    places = Places(trained_run, pusht_store, pickplace_store, tmp_path)
    before = contents(trained_run, pusht_store, pickplace_store)
    yield places
    assert contents(trained_run, pusht_store, pickplace_store) == before
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


def message_of(command: list[str], capsys: pytest.CaptureFixture[str], *, status: int = 1) -> str:
    """The one line that a command that cannot work prints."""
    capsys.readouterr()
    assert main(command) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, f"more than one line:\n{captured.err}"
    assert "Traceback" not in captured.err + captured.out
    return captured.err


# Wrong commands

Command = Callable[[Places], list[str]]
WRONG_COMMANDS: dict[str, tuple[Command, list[str]]] = {
    # options
    "misspelt option": (
        lambda at: at.train("training.stpes=5"),
        ["'training.stpes'", "did you mean training.steps"],
    ),
    "option of no section": (lambda at: at.train("stepz=5"), ["'stepz'", "training.steps"]),
    "no KEY=VALUE": (lambda at: at.train("fast"), ["KEY=VALUE", "'fast'"]),
    "added option": (lambda at: at.train("+training.speed=5"), ["KEY=VALUE", "'+training.speed=5'"]),
    "removed option": (lambda at: at.train("~training.steps=10000"), ["KEY=VALUE", "'~training.steps=10000'"]),
    "value without a key": (lambda at: at.train("=5"), ["KEY=VALUE", "'=5'"]),
    "several values": (lambda at: at.train("training.steps=1,2"), ["training.steps=1,2"]),
    "no closing bracket": (lambda at: at.train("env.goal_pose=[1,2"), ["[1,2"]),
    "unknown task": (
        lambda at: ["train", "task=pushd", f"dataset.path={at.pusht}"],
        ["'pushd'", "pickplace_image, pickplace_state, pusht_image, pusht_image_pose, pusht_keypoints, pusht_state"],
    ),
    "no task": (
        lambda at: ["train", f"dataset.path={at.pusht}"],
        ["does not say at which rate", "dataset.control_hz=10"],
    ),
    "no data set": (lambda at: ["train", "task=pusht_state"], ["dataset.path=", "must be given"]),
    "unknown network": (
        lambda at: at.train("network=resnet"),
        ["'resnet'", "dit, gru", "mixer, mlp"],
    ),
    "option of another network": (
        lambda at: at.train("network=mlp", "network.heads=2"),
        ["network.heads is an option of network=dit|", "but this recipe has network=mlp"],
    ),
    "unknown device": (lambda at: at.train("device=abacus"), ["'abacus'", "auto, cpu, cuda, cuda:N and mps"]),
    "resume nothing": (
        lambda at: ["train", "task=pusht_state", f"dataset.path={at.pusht}", "training.resume=true"],
        ["training.resume=true", "output_dir=DIR"],
    ),
    "number as text": (lambda at: at.train("training.steps=many"), ["training.steps=many", "a whole number"]),
    "fraction as a whole number": (lambda at: at.train("policy.horizon=8.5"), ["policy.horizon=8.5", "a whole number"]),
    "text as a number": (lambda at: at.train("training.gradient_clip=no"), ["training.gradient_clip=no", "a number"]),
    "text of a null": (lambda at: at.train("training.warmup_steps=few"), ["training.warmup_steps=few", "whole number"]),
    "number as a switch": (lambda at: at.train("policy.mask_padding=2"), ["policy.mask_padding=2", "true or false"]),
    "number as a list": (lambda at: at.train("network=unet1d", "network.channels=3"), ["network.channels=3", "a list"]),
    "nothing as a number": (lambda at: at.train("training.steps=null"), ["training.steps=", "a whole number"]),
    "fine-tuning for another objective": (
        lambda at: at.train(f"training.init_from={at.run}", "objective=v"),
        ["objective=v", "was trained with objective=flow", "fine-tuning keeps it; leave it out"],
    ),
    "mirror that moves the goal": (
        lambda at: at.train("env.goal_pose=[200,300,0.5]"),
        ["dataset.symmetry moves the goal", "[200.0, 300.0, 0.5]", "dataset.symmetry=null"],
    ),
    "value as a section": (lambda at: at.train("training=fast"), ["training=fast", "training.KEY=VALUE"]),
    "width": (lambda at: at.train("network.width=oops"), ["network.width=oops", "a whole number"]),
    "no batch": (lambda at: at.train("training.batch_size=0"), ["training.batch_size=0", "at least 1"]),
    "no steps": (lambda at: at.train("training.steps=0"), ["training.steps=0", "at least 1"]),
    "no horizon": (lambda at: at.train("policy.horizon=0"), ["horizon=0", "n_action_steps <= horizon"]),
    "negative seed": (lambda at: at.train("seed=-1"), ["seed=-1", "at least 0"]),
    "all to validate": (
        lambda at: at.train("dataset.validation_fraction=1.5"),
        ["dataset.validation_fraction=1.5", "below 1"],
    ),
    "negative episodes": (lambda at: at.train("evaluation.episodes=-1"), ["evaluation.episodes=-1", "at least 0"]),
    "nfe of the selection": (lambda at: at.train("evaluation.nfe=0"), ["nfe=0", "positive"]),
    "nfe of the solver": (lambda at: at.train("policy.solver=heun", "evaluation.nfe=3"), ["nfe=3", "multiple of 2"]),
    "unknown solver": (lambda at: at.train("policy.solver=verlet"), ["'verlet'", "euler", "midpoint"]),
    "unknown scaling": (lambda at: at.train("dataset.normalizer.state=log"), ["'log'", "min_max, gaussian, quantile"]),
    "scaling of nothing": (lambda at: at.train("dataset.normalizer.img=min_max"), ["img", "action", "state"]),
    "weights to start from": (
        lambda at: at.train("training.init_from=no/such/run"),
        ["no/such/run", "give a run directory or a checkpoint directory"],
    ),
    "run in the way": (
        lambda at: at.train(f"output_dir={at.run}"),
        ["holds a training run", "training.resume=true", "output_dir"],
    ),
    # environments
    "unknown argument of the environment": (
        lambda at: at.train("env.colour=red"),
        ["env.colour", "env.observation", "env.goal_pose", "env.physics_step"],
    ),
    # options
    "option of another encoder": (
        lambda at: at.train("vision.pretrain_steps=100"),
        ["vision.pretrain_steps is an option of vision=", "|small_conv|", "but this recipe has vision=none"],
    ),
    "list that is not closed": (
        lambda at: at.train("dataset.observe=[state"),
        ["dataset.observe=[state cannot be read", "close every bracket and quote"],
    ),
    "section as a value": (
        lambda at: at.train("policy.frame=goal"),
        ["policy.frame=goal is not a value but a section", "it has origin, angle, points"],
    ),
    "what an environment says": (
        lambda at: at.train("dataset.units.state=m", "dataset.control_hz=50"),
        ["dataset.units.state=…", "dataset.control_hz=…", "task=pusht_state has an environment", "task=own"],
    ),
    "any environment, but none": (lambda at: at.train("task=gym"), ["task=gym needs env_id=ID"]),
    "options of no environment": (
        lambda at: at.train("task=own", "env.control_hz=10"),
        ["env.control_hz=…: there is no environment that could take this", "give env_id=ID"],
    ),
    "argument it cannot use": (lambda at: at.train("env.goal_pose=[1,2]"), ["goal_pose", "3 finite numbers"]),
    "action kind": (lambda at: at.train_arm("env.action=torque"), ["torque", "joint_position", "end_effector_pose"]),
    "action size": (
        lambda at: at.train_arm("env.action=end_effector_pose"),
        ["the environment has 10 action dimensions", "arm.zarr has 7"],
    ),
    "robot": (lambda at: at.train(store=at.arm), ["the environment has 2 action dimensions", "arm.zarr has 7"]),
    # places
    "store that is not there": (lambda at: at.train("dataset.path=no/such.zarr"), ["no/such.zarr", "does not exist"]),
    "store that is a file": (lambda at: at.train(f"dataset.path={at.file}"), ["a_file", "no known format", "zarr"]),
    "store that is a run": (lambda at: at.train(f"dataset.path={at.run}"), ["is not a data set", "meta/episode_ends"]),
    "output below a file": (lambda at: at.train(f"output_dir={at.file}/run", "network.width=8"), ["a_file/run"]),
    "output that is a file": (lambda at: at.train(f"output_dir={at.file}", "network.width=8"), ["a_file", "path"]),
    # eval
    "no checkpoint": (lambda at: ["eval"], ["flowchunk eval CHECKPOINT"]),
    "options without a checkpoint": (lambda at: ["eval", "episodes=3"], ["flowchunk eval CHECKPOINT"]),
    "checkpoint that is not there": (lambda at: ["eval", "no/such/run"], ["no/such/run", "no such path"]),
    "checkpoint that is a store": (lambda at: at.eval(run=at.pusht), ["no checkpoint.json", "give a run directory"]),
    "nfe of nothing": (lambda at: at.eval("nfe=0"), ["nfe=0", "positive"]),
    "nfe as text": (lambda at: at.eval("nfe=abc"), ["nfe=abc", "a whole number"]),
    "more actions than predicted": (lambda at: at.eval("n_action_steps=99"), ["n_action_steps=99", "horizon, 16"]),
    "no action": (lambda at: at.eval("n_action_steps=0"), ["n_action_steps=0", "1 to"]),
    "no episodes": (lambda at: at.eval("episodes=0"), ["episodes=0", "at least 1"]),
    "episodes as text": (lambda at: at.eval("episodes=few"), ["episodes=few", "a whole number"]),
    "no environments": (lambda at: at.eval("num_envs=0"), ["num_envs=0", "at least 1"]),
    "seed of eval": (lambda at: at.eval("seed=-1"), ["seed=-1", "at least 0"]),
    "option of train": (lambda at: at.eval("training.steps=3"), ["unknown option 'training.steps'"]),
    "environment of eval": (lambda at: at.eval("env_id=flowchunk/PushT-v9"), ["flowchunk/PushT-v9"]),
    "robot of eval": (
        lambda at: at.eval("env_id=flowchunk/PickPlace-v1"),
        ["the policy", "flowchunk/PickPlace-v1"],
    ),
    "observation of eval": (
        lambda at: at.eval("env.observation=keypoints"),
        ["the policy needs the observation 'state'", "keypoints"],
    ),
    "report below a file": (lambda at: at.eval(f"output_dir={at.file}/eval"), ["a_file/eval"]),
    # collect, data, demo
    "no expert": (lambda at: at.collect("task=pusht_state"), ["pusht_state", "no scripted expert", "demonstrations"]),
    "no demonstrations": (lambda at: at.collect("episodes=0"), ["episodes=0", "at least 1"]),
    "demonstrations as text": (lambda at: at.collect("episodes=few"), ["episodes=few", "a whole number"]),
    "store in the way": (
        lambda at: at.collect(f"output_dir={at.arm}"),
        ["arm.zarr exists already", "choose another path"],
    ),
    "run in the way of a store": (lambda at: at.collect(f"output_dir={at.run}"), ["exists already"]),
    "no place for a store": (lambda at: ["collect", "task=pickplace_state"], ["output_dir=", "must be given"]),
    "store below a file": (lambda at: at.collect(f"output_dir={at.file}/new.zarr"), ["a_file"]),
    "nothing to inspect": (lambda at: ["data", "inspect"], ["flowchunk data inspect PATH"]),
    "nothing but data": (lambda at: ["data", "look", str(at.arm)], ["flowchunk data inspect PATH"]),
    "inspect what is not there": (lambda at: ["data", "inspect", "no/such.zarr"], ["no/such.zarr", "does not exist"]),
    "demo of what": (lambda at: ["demo", "--slow"], ["--quick", "output_dir=DIR", "--slow"]),
}


@pytest.mark.parametrize("name", WRONG_COMMANDS)
def test_a_wrong_command_is_explained(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    command, expected = WRONG_COMMANDS[name]
    message = message_of(command(places), capsys)
    assert all(part in message for part in expected), f"{message!r} does not say all of {expected}"
    assert len(message) < 1500


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", ["train", "eval", "collect"])
def test_a_folder_that_may_not_be_written_is_an_error(
    command: str, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = places.folder / "locked"
    locked.mkdir(mode=0o500)
    message = message_of(getattr(places, command)(f"output_dir={locked / 'new'}"), capsys)
    assert str(locked) in message
    assert "Permission denied" in message


# Damaged stores


def remove(path: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        target = store / path
        assert target.exists()
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def truncate(key: str, frames: int) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        array: Any = zarr.open_group(store, mode="r+")[f"data/{key}"]
        array.resize((frames, *array.shape[1:]))

    return damage


def overwrite(path: str, content: bytes) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        assert (store / path).is_file()
        (store / path).write_bytes(content)

    return damage


def put(key: str, row: int, value: float) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        array: Any = zarr.open_group(store, mode="r+")[key]
        array[row] = value

    return damage


def narrow_actions(store: Path) -> None:
    root = zarr.open_group(store, mode="r+")
    del root["data/action"]
    root.create_array("data/action", data=np.ones((100, 3), np.float32))


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no action": (remove("data/action"), ["no array data/action", "'state'"]),
    "no observation": (remove("data/state"), ["no array data/state", "'action'"]),
    "no episodes": (remove("meta/episode_ends"), ["is not a data set", "meta/episode_ends"]),
    "chunk file is missing": (remove("data/state/3.0"), ["data/state", "1 of 7 chunk files are missing", "copy"]),
    "chunk file is damaged": (overwrite("data/state/3.0", b"noise"), ["state", "a chunk is damaged", "copy"]),
    "description is damaged": (overwrite("data/state/.zarray", b"{"), ["is not a data set"]),
    "actions are truncated": (truncate("action", 90), ["100 frames", "data/action has 90", "truncated"]),
    "observations are truncated": (truncate("state", 90), ["data/state", "truncated", "90 frames", "100"]),
    "actions go on": (truncate("action", 120), ["100 frames", "data/action has 120"]),
    "episodes fall": (put("meta/episode_ends", 2, 35), ["must increase", "entry 2 is 35 after 40"]),
    "an episode is empty": (put("meta/episode_ends", 0, 0), ["must increase", "entry 0 is 0"]),
    "episodes go on": (put("meta/episode_ends", 4, 130), ["130 frames", "data/action has 100"]),
    "NaN observed": (put("data/state", 47, np.nan), ["data/state", "NaN", "episode 2, frame 7", "row 47", "repair"]),
    "infinity commanded": (put("data/action", 30, np.inf), ["data/action", "infinity", "episode 1, frame 0", "row 30"]),
    "actions of another size": (narrow_actions, ["data/action", "(3,)", "expects (2,)"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_explained(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = DAMAGES[name]
    store = places.folder / "damaged.zarr"
    shutil.copytree(places.pusht, store)
    damage(store)
    before = contents(store)
    message = message_of(places.train(store=store), capsys)
    assert str(store) in message
    assert all(part in message for part in expected), f"{message!r} does not say all of {expected}"
    assert contents(store) == before


@pytest.mark.parametrize("name", ["chunk file is damaged", "episodes fall", "NaN observed"])
def test_inspecting_a_damaged_store_explains_it_too(
    name: str, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, expected = DAMAGES[name]
    store = places.folder / "damaged.zarr"
    shutil.copytree(places.pusht, store)
    damage(store)
    message = message_of(["data", "inspect", str(store)], capsys)
    assert all(part in message for part in expected)


# Damaged checkpoints


def edit_description(**changes: Any) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        file = checkpoint / "checkpoint.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


CHECKPOINT_DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "newer format": (edit_description(format_version=99), ["format 99", "reads up to 3", "update flowchunk"]),
    "another kind": (edit_description(kind="toaster"), ["'toaster'", "'chunk_policy'"]),
    "no weights": (remove("model.safetensors"), ["model.safetensors is missing", "copy"]),
    "cut weights": (overwrite("model.safetensors", b"\x10"), ["model.safetensors is damaged", "copy"]),
    "cut description": (overwrite("checkpoint.json", b'{"format'), ["checkpoint.json cannot be read", "copy"]),
    "empty description": (overwrite("checkpoint.json", b"[]"), ["checkpoint.json", "list"]),
}


@pytest.mark.parametrize("name", CHECKPOINT_DAMAGES)
def test_a_damaged_checkpoint_is_explained(name: str, places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    damage, expected = CHECKPOINT_DAMAGES[name]
    checkpoint = places.folder / "damaged"
    shutil.copytree(places.run / "checkpoints" / "last", checkpoint)
    damage(checkpoint)
    message = message_of(places.eval(run=checkpoint), capsys)
    assert str(checkpoint) in message
    assert all(part in message for part in expected), f"{message!r} does not say all of {expected}"


def test_resuming_without_its_state_is_explained(
    interrupted_run: Path, places: Places, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run = places.folder / "run"
    shutil.copytree(interrupted_run, run)
    (run / "checkpoints" / "last" / "training_state.safetensors").unlink()
    before = contents(run)
    message = message_of(places.train(f"output_dir={run}", *tiny, "training.resume=true"), capsys)
    assert "training_state.safetensors is missing" in message
    assert contents(run) == before


# A full disk

TRAIN_WITH_LITTLE_ROOM = """if True:
    import resource, sys
    import flowchunk.cli.train
    from flowchunk.cli.main import main
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to set")
def test_a_full_disk_leaves_the_former_checkpoint(interrupted_run: Path, places: Places, tiny: tuple[str, ...]) -> None:
    run = places.folder / "run"
    shutil.copytree(interrupted_run, run)
    checkpoints = contents(run / "checkpoints")
    command = places.train(f"output_dir={run}", *tiny, "training.resume=true")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_WITH_LITTLE_ROOM, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "resuming from step 2" in done.stdout
    assert done.stderr.startswith("error: cannot write ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in (str(run / "checkpoints"), "the previous checkpoint is unchanged", "free some disk space"):
        assert part in done.stderr
    assert contents(run / "checkpoints") == checkpoints
    ChunkPolicy.load(run / "checkpoints" / "last")
