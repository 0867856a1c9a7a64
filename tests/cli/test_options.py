"""KEY=VALUE as people type it: paths of any name, checkpoints with "=" in them, devices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.main import main
from flowchunk.cli.options import RENAMED, choices, read_options, take_checkpoint
from flowchunk.cli.train import policy_config
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.tasks.pick_place import JOINTS
from flowchunk.policy.checkpoint import find_checkpoint
from flowchunk.policy.devices import choose_device
from flowchunk.policy.encoders.observation import VISION
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.training.config import TrainingConfig

NAMES = [
    "x (1)",
    "a=b",
    "a,b",
    "it's",
    'a "b" c',
    "ü#1",
    "2026",
    "true",
    "[1]",
    "{a: b}",
    "a: b",
    "back\\slash",
    "end\\",
    "\\'",
    "${HOME}",
    "\\${x}",
    "$x",
    "%",
    " spaced ",
    "nullify",
]
PATHS = [
    ("eval", "output_dir", ()),
    ("collect", "output_dir", ("task=pickplace_state",)),
    ("compare", "dataset.path", ()),
    ("train", "dataset.path", ("task=pusht_state",)),
    ("train", "dataset.cache_dir", ("task=pusht_image", "dataset.path=x")),
    ("train", "training.init_from", ("task=pusht_state", "dataset.path=x")),
    ("train", "vision.weights", ("task=pusht_image", "dataset.path=x", "vision=resnet18")),
    ("train_generative", "dataset.path", ("task=images", "dataset=folder")),
]


def value_of(config: str, key: str, value: str, others: tuple[str, ...]) -> object:
    found: object = read_options(config, [*others, f"{key}={value}"])
    for part in key.split("."):
        assert isinstance(found, dict)
        found = found[part]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_path_may_have_any_name(name: str) -> None:
    assert value_of("eval", "output_dir", name, ()) == name


@pytest.mark.parametrize(("config", "key", "others"), PATHS)
def test_every_path_may(config: str, key: str, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert value_of(config, key, "it's (1), a=b", others) == "it's (1), a=b"
    assert value_of(config, key, "~/x", others) == "/home/somebody/x"
    assert value_of(config, key, "~no_such_user/x", others) == "~no_such_user/x"


def test_null_and_what_is_quoted_for_hydra_stay_what_they_were() -> None:
    assert value_of("eval", "output_dir", "null", ()) is None
    assert value_of("eval", "output_dir", "'a b'", ()) == "a b"
    assert value_of("eval", "output_dir", '"a b"', ()) == "a b"


def test_a_whole_run_may_live_in_a_folder_of_such_a_name(
    pusht_store: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    folder = tmp_path / "it's (1), a=b ${c}"
    shutil.copytree(pusht_store, folder / "data #1.zarr")
    options = ("task=pusht_state", f"dataset.path={folder / 'data #1.zarr'}", f"output_dir={folder / 'lr=0.1'}")
    assert main(["train", *options, *tiny]) == 0
    assert main(["train", *options, *tiny, "training.resume=true"]) == 0
    assert main(["eval", str(folder / "lr=0.1"), "episodes=1", "video=0"]) == 0
    checkpoint = json.loads((folder / "lr=0.1" / "eval" / "eval.json").read_text())["checkpoint"]
    assert checkpoint == str(find_checkpoint(folder / "lr=0.1"))


@pytest.mark.parametrize("command", ["eval", "sweep", "generate"])
def test_a_checkpoint_may_have_an_equals_sign(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nfe=4").mkdir()
    for path in ("lr=0.1", "./lr=0.1", "nfe=4"):
        assert take_checkpoint(command, [path, "nfe=1"]) == (path, ["nfe=1"])
    for arguments in ([], ["nfe=1"], ["seed=3", "nfe=4"]):
        with pytest.raises(ConfigurationError, match=f"give the checkpoint first: flowchunk {command} CHECKPOINT"):
            take_checkpoint(command, arguments)


def test_devices_are_chosen_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected
    if torch.cuda.is_available():
        assert choose_device("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["abacus", "cpu:0", "cuda:", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="there are auto, cpu, cuda, cuda:N and mps"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", *([] if torch.cuda.is_available() else ["cuda"])])
@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_device_that_is_not_there_is_refused(
    command: str, name: str, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(trained_run), f"device={name}"]) == 1
    assert f"device={name}: this machine has" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cuda:99", *([] if torch.cuda.is_available() else ["cuda"])])
@pytest.mark.parametrize("task", ["pusht_state", "toy2d"])
def test_nothing_is_trained_on_a_device_that_is_not_there(
    task: str, name: str, pusht_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [] if task == "toy2d" else [f"dataset.path={pusht_store}"]
    assert main(["train", f"task={task}", *data, f"output_dir={tmp_path / 'run'}", f"device={name}"]) == 1
    assert f"device={name}: this machine has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Options of earlier versions


def test_a_renamed_option_of_eval_is_refused_with_its_new_name() -> None:
    with pytest.raises(ConfigurationError, match="workers was renamed; use processes"):
        read_options("eval", ["workers=true"])


OF_TRAINING = [old for old in RENAMED if old != "workers"]


@pytest.mark.parametrize("old", OF_TRAINING)
def test_a_renamed_option_is_refused_with_its_new_name(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["task=toy2d"] if old.startswith("model.") or "." not in old else ["task=pusht_image", "dataset.path=x"]
    assert main(["train", *task, f"{old}=1"]) == 1
    assert f"{old} was renamed; use {RENAMED[old]}" in capsys.readouterr().err


@pytest.mark.parametrize("old", OF_TRAINING)
def test_the_new_name_of_a_renamed_option_is_one(old: str) -> None:
    of_data = old.startswith("model.") or "." not in old
    task = ["task=toy2d"] if of_data else ["task=pusht_image", "dataset.path=x"]
    value: object = read_options("train_generative" if of_data else "train", task)
    for part in RENAMED[old].split("."):
        assert isinstance(value, dict)
        value = value[part]


# --cfg job


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["train", *arguments]) == 0
    content = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


@pytest.mark.parametrize("task", choices("task"))
def test_the_options_are_printed(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of ``read_options``, and what has to be given yet as Hydra writes it."""
    config, required = ("train_generative", []) if task in DOMAINS else ("train", ["dataset.path=x"])
    options = read_options(config, [f"task={task}", *required, "training.steps=7"])
    assert printed([f"task={task}", *required, "--cfg", "job", "training.steps=7"], capsys) == options
    assert options["training"]["steps"] == 7
    if required:
        assert printed([f"task={task}", "--cfg", "job"], capsys)["dataset"]["path"] == "???"


def test_printing_the_options_trains_nothing(pusht_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "task=pusht_state", f"dataset.path={pusht_store}", f"output_dir={run}", "--cfg", "job"]) == 0
    assert not run.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg"], "--cfg : expected --cfg job"),
        (["--cfg", "hydra"], "--cfg hydra: expected --cfg job"),
        (["--cfg", "job", "training.step=3"], "did you mean training.steps"),
        (["--cfg", "job", "training.steps=few"], "training.steps=few must be a whole number"),
    ],
)
def test_what_cannot_be_printed_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "task=pusht_state", *arguments]) == 1
    assert message in capsys.readouterr().err


# Recipes

THEN = json.loads((Path(__file__).parent / "options_7c6bd63.json").read_text())
"""What each task came to before options were dataclasses and recipes were apart from tasks, at commit 7c6bd63."""
CHANGED = {"pusht_state": {"network.width": 256, "training.steps": 6000, "evaluation.noise_scale": 0.5}}
"""What a task has come to since: in the block's frame Push-T needs less."""
INDEX_NAMES = {
    **{f"{key}.{index}": f"{key}.agent_{'xy'[index]}" for key in ("state", "agent_position") for index in range(2)},
    **{f"proprioception.{index}": f"proprioception.{joint}" for index, joint in enumerate(JOINTS)},
}
"""The names of observed values that had indices then."""
SINCE = {
    *("network.expansion", "network.skip", "network.groups", "training.cuda_graphs"),
    *("dataset.observe", "dataset.exclude", "dataset.control_hz", "dataset.reference", "dataset.condition_on_task"),
    *("dataset.stored_split", "dataset.image_size", "policy.frame", "policy.estimated", "policy.estimate_every"),
    *("policy.frame.origin", "policy.frame.angle", "policy.frame.points", "policy.frame.actions", "policy.frame.fine"),
    *("policy.frame.landmarks.goal", "policy.frame.hindsight", "vision.pretrain_steps"),
}
"""Options that did not exist then."""


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by their dotted names; sections without any are left out."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("words", THEN)
def test_a_task_alone_still_gives_its_recipe(words: str) -> None:
    task, *more = words.split()
    config, required = ("train_generative", []) if task in DOMAINS else ("train", ["dataset.path=x"])
    renamed = {**RENAMED, "dataset.symmetry.image.picture": "dataset.symmetry.image.transform"}
    then = {renamed.get(key, key): value for key, value in flat(THEN[words]).items()}
    if task in DOMAINS:
        then["dataset.name"] = then.pop("dataset")
    now = flat(read_options(config, [f"task={task}", *more, *required]))
    if then.get("policy.relative_to") is not None:
        then["policy.relative_to"] = [entry and INDEX_NAMES[entry] for entry in then["policy.relative_to"]]
    then |= CHANGED.get(words, {})
    assert {key: now.get(key) for key in then} == then
    assert {key for key in now if key not in then} <= SINCE


def test_a_recipe_can_be_left_out_or_be_another_ones() -> None:
    chosen = ["task=pusht_state", "dataset.path=x"]
    without = read_options("train", [*chosen, "experiment=none"])
    assert without["dataset"]["symmetry"] is None
    assert without["policy"]["n_action_steps"] == PolicyConfig.n_action_steps
    assert without["env"] == {"observation": "state"}
    assert read_options("train", [*chosen, "experiment=pusht_state"]) == read_options("train", chosen)


FRAME = {"origin": ["a.x", "a.y"], "angle": "a.z", "actions": [["x", "y"]]}


@pytest.mark.parametrize(
    "words",
    [
        ["policy.frame={origin: [a.x, a.y], angle: a.z, actions: [[x, y]]}"],
        ["policy.frame.origin=[a.x,a.y]", "policy.frame.angle=a.z", "policy.frame.actions=[[x,y]]"],
        ["policy.frame={origin: [a.x, a.y], angle: a.y, actions: [[x, y]]}", "policy.frame.angle=a.z"],
    ],
)
def test_a_section_that_is_null_can_be_given_whole_or_by_its_keys(words: list[str]) -> None:
    chosen = ["task=pickplace_state", "dataset.path=x"]
    assert read_options("train", [*chosen, *words])["policy"]["frame"] == FRAME
    assert read_options("train", chosen)["policy"]["frame"] is None
    assert read_options("train", [*chosen, "policy.frame=null"])["policy"]["frame"] is None
    mirror = ["dataset.symmetry.action={order: [0], sign: [1], offset: [0.5]}"]
    found = read_options("train", [*chosen, *mirror])["dataset"]["symmetry"]
    assert found == {"action": {"order": [0], "sign": [1], "offset": [0.5]}}


def test_a_recipes_section_can_be_left_out_or_changed() -> None:
    chosen = ["task=pusht_state", "dataset.path=x"]
    assert read_options("train", [*chosen, "policy.frame=null"])["policy"]["frame"] is None
    changed = read_options("train", [*chosen, "policy.frame.fine=[0.2]"])["policy"]["frame"]
    assert changed["fine"] == [0.2]
    assert changed["angle"] == "state.block_angle"


@pytest.mark.parametrize("word", ["policy.frame=3", "policy.frame=text"])
def test_a_value_is_no_section(word: str) -> None:
    with pytest.raises(ConfigurationError, match=r"policy\.frame="):
        read_options("train", ["task=pickplace_state", "dataset.path=x", word])


@pytest.mark.parametrize(("objective", "expected"), [("flow", 0.5), ("flow_map", 0.5), ("mip", 1), ("regression", 1)])
def test_a_recipes_noise_scale_is_for_objectives_that_start_from_noise(objective: str, expected: float) -> None:
    chosen = ["task=pusht_state", "dataset.path=x", f"objective={objective}"]
    assert read_options("train", chosen)["evaluation"]["noise_scale"] == expected
    assert read_options("train", [*chosen, "evaluation.noise_scale=0.7"])["evaluation"]["noise_scale"] == 0.7


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown experiment 'none_such'; there are adroit_door, images, none"):
        read_options("train", ["task=pusht_state", "dataset.path=x", "experiment=none_such"])


@pytest.mark.parametrize("key", ["task", "network", "vision", "hardware", "experiment"])
def test_a_number_is_no_choice(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"unknown {key} '1'; there are "):
        read_options("train", ["task=pusht_image", "dataset.path=x", f"{key}=1"])


# Types and defaults are those of the dataclasses


def test_every_image_encoder_is_a_choice() -> None:
    assert {*choices("vision")} == {*VISION, "none", "small_conv_narrow"}


def test_defaults_are_those_of_the_dataclasses() -> None:
    options = read_options("train", ["task=own", "dataset.path=x"])
    training = {one.name: getattr(TrainingConfig(), one.name) for one in fields(TrainingConfig) if one.name != "seed"}
    assert training.items() <= options["training"].items()
    policy = policy_config(options)
    assert policy == PolicyConfig(network_options=policy.network_options)


WRONG_TYPES = [
    ("train", "training.steps=many", "a whole number"),
    ("train", "training.steps=8.5", "a whole number"),
    ("train", "training.steps=null", "a whole number"),
    ("train", "training.steps=true", "a whole number"),
    ("train", "training.warmup_steps=few", "a whole number"),
    ("train", "training.learning_rate=high", "a number"),
    ("train", "training.prefetch=2", "true or false"),
    ("train", "policy.mask_padding=1", "true or false"),
    ("train", "objective=3", "text"),
    ("train", "objective=null", "text"),
    ("train", "policy.relative_to=state.0", "a list"),
    ("train", "network.width=wide", "a whole number"),
    ("train", "dataset.normalizer.state=3", "text"),
    ("train", "dataset.symmetry=3", "is not a value but a section"),
    ("train", "seed=-1", "at least 0"),
    ("generate", "label=3.5", "a whole number or a name"),
    ("eval", "processes=two", "a whole number"),
    ("run", "dry_run=3", "true or false"),
]


@pytest.mark.parametrize(("config", "override", "kind"), WRONG_TYPES)
def test_a_value_of_the_wrong_type_is_named_with_its_key(config: str, override: str, kind: str) -> None:
    chosen = ["task=pusht_state", "dataset.path=x"] if config == "train" else []
    with pytest.raises(ConfigurationError) as caught:
        read_options(config, [*chosen, override])
    assert str(caught.value).startswith(override)
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("task=images", "dataset=some/folder"),
            "unknown dataset 'some/folder' of task=images; there are digits, folder;",
        ),
        (("task=images", "dataset=some.zip"), "give a folder or a zip of images by dataset=folder dataset.path=PATH"),
        (("task=images", "dataset=folder"), "dataset.path=… must be given"),
        (("task=images", "dataset=spiral"), "unknown dataset 'spiral' of task=images; there are digits, folder"),
        (("task=toy2d", "dataset=digits"), "there are 8gaussians, checkerboard, spiral, two_moons"),
        (("task=torus", "dataset=digits"), "unknown dataset 'digits' of task=torus; there is planar_arm"),
    ],
)
def test_a_dataset_that_a_task_has_not_is_refused(
    words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words, f"output_dir={tmp_path / 'run'}"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["state[:2]", "position + gripper[:1]", "a b", "'state[1:]'", "obs/front"])
def test_sources_need_no_quotes(text: str) -> None:
    """Hydra's grammar refuses most of them."""
    options = read_options("train", ["task=own", "dataset.path=x", f"dataset.sources.key={text}"])
    assert options["dataset"]["sources"] == {"key": text.strip("'")}
