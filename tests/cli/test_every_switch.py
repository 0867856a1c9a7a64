"""Every switch as the only word added to every task: it trains and acts, or is refused with what goes instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowchunk.cli.domains import DOMAINS
from flowchunk.cli.domains.domain import make_domain
from flowchunk.cli.main import main
from flowchunk.cli.options import choices, read_options
from flowchunk.cli.train import policy_config
from flowchunk.cli.train_generative import domain_options, fit_normalizer, generative_config
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.recorder import StoreWriter
from flowchunk.datasets.specs import ObservationSpec
from flowchunk.envs.contract import recorded_fields_of, specs_of
from flowchunk.envs.simulation import environment_maker
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.data_model import DataModel
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.diffusion.schedules import SCHEDULES
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.diffusion.time_densities import TIME_DENSITIES
from flowchunk.policy.fitting import with_architecture
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.planar_frame import FRAME
from flowchunk.policy.relative_actions import find_coordinates

IMAGE_NETWORKS = ("local_conv", "patch_dit", "unet2d")
ADAPTED = (
    "adroit_door",
    "fetch_pick_and_place",
    "metaworld",
    "robomimic",
)  # they need packages of others, and train as any task of states
TASKS = [task for task in choices("task") if task not in ("own", "gym", *ADAPTED)]
SWITCHES = [
    *(("objective", name) for name in objective_names()),
    *(("schedule", name) for name in SCHEDULES),
    *(("network", name) for name in choices("network")),
    *(("solver", name) for name in SOLVERS),
    *(("time_density", name) for name in TIME_DENSITIES),
    *(("vision", name) for name in choices("vision")),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as the hub has them, and no way to the hub."""
    transformers = pytest.importorskip("transformers", reason="needs the extra vision-backbones")
    folder = tmp_path_factory.mktemp("hub") / "dinov2"
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}
    transformers.Dinov2Config(**config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def image_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes of pushing, seen from above."""
    path = tmp_path_factory.mktemp("stores") / "seen.zarr"
    env = environment_maker("flowchunk/PushT-v1", {"observation": "image"})()
    env.action_space.seed(0)
    spec, actions = (env.get_wrapper_attr(name) for name in ("observation_spec", "action_spec"))
    with StoreWriter(path, observation_spec=spec, action_spec=actions) as writer:
        for seed in range(2):
            frames, done = [env.reset(seed=seed)[0]], []
            for _ in range(12):
                done.append(env.action_space.sample())
                frames.append(env.step(done[-1])[0])
            writer.add_episode({key: np.stack([f[key] for f in frames[:-1]]) for key in frames[0]}, np.stack(done))
    env.close()
    return path


@cache
def specs(env_id: str, observation: str | None, estimated: tuple[str, ...]) -> tuple[Any, Any]:
    env = environment_maker(env_id, {} if observation is None else {"observation": observation})()
    try:
        observation_spec, action_spec = specs_of(env)
        recorded = {key: recorded_fields_of(env).fields[key] for key in estimated}
        return ObservationSpec({**observation_spec.fields, **recorded}), action_spec
    finally:
        env.close()


def argument(task: str, key: str, value: str) -> str:
    section = ("model." if task in DOMAINS else "policy.") if key in ("solver", "time_density") else ""
    return f"{section}{key}={value}"


def with_frame(options: dict[str, Any]) -> dict[str, Any]:
    """The options with landmarks somewhere; ``train`` takes them from the environment."""
    frame = options["policy"]["frame"]
    if frame is not None:
        options["policy"]["frame"] = {**frame, "landmarks": {key: [0.1, 0.2, 0.3] for key in frame["landmarks"]}}
    return options


def act_once(task: str, *words: str) -> None:
    """One loss with its gradient, and one chunk, as the options' policy has them."""
    options = with_frame(read_options("train", [f"task={task}", "dataset.path=-", *words]))
    estimated = tuple(options["policy"]["estimated"])
    observation_spec, action_spec = specs(options["task"]["env_id"], options["env"].get("observation"), estimated)
    crop = options["vision"].get("crop")
    observation_spec = observation_spec.cropped(None if crop is None else tuple(crop))
    random = np.random.default_rng(0)
    scalings = {
        key: Scaling.fit("min_max", [random.normal(size=(8, *field.shape))])
        for key, field in observation_spec.values.items()
    }
    config = with_architecture(policy_config(options), observation_spec)
    shape = (config.horizon, action_spec.size) if config.relative_to else (action_spec.size,)
    scalings["action"] = Scaling.fit("gaussian", [random.normal(size=(8, *shape))])
    if (frame := find_coordinates(config, observation_spec, action_spec).frame) is not None:
        scalings[FRAME] = Scaling.fit("gaussian", [random.normal(size=(8, frame.size))])
    policy = ChunkPolicy(config, observation_spec, action_spec, Normalizer(scalings))
    seen = {
        key: random.integers(0, 255, (2, config.observation_steps, *field.shape), dtype=np.uint8)
        if field.is_image
        else random.normal(size=(2, config.observation_steps, *field.shape)).astype(np.float32)
        for key, field in observation_spec.fields.items()
    }
    batch = {f"observation.{key}": torch.from_numpy(value) for key, value in seen.items()}
    batch["action"] = torch.randn(2, config.horizon, action_spec.size)
    batch["mask"] = torch.ones(2, config.horizon, dtype=torch.bool)
    error, weight = policy(batch, policy.sample_noise(2, torch.Generator().manual_seed(0)))
    (error / weight).backward()
    assert error.isfinite()
    assert any(bool(parameter.grad.abs().max() > 0) for parameter in policy.parameters() if parameter.grad is not None)
    chunk = policy.eval().predict_chunk(
        {key: value[:1] for key, value in seen.items()}, nfe=options["evaluation"]["nfe"]
    )
    assert chunk.shape == (1, config.horizon, action_spec.size)
    assert np.isfinite(chunk).all()


@cache
def domain_of(task: str) -> tuple[Any, Any]:
    options = read_options("train_generative", [f"task={task}", *(["dataset=digits"] if task == "images" else [])])
    domain = make_domain(task, domain_options(options))
    return domain, domain.train_data()


def generate_once(task: str, *words: str) -> None:
    options = read_options("train_generative", [f"task={task}", *words])
    domain, data = domain_of(task)
    model = DataModel(generative_config(options, domain, data), fit_normalizer(domain, data))
    batch = data.batch(torch.arange(2))
    draws = model.sample_noise(2, torch.Generator().manual_seed(0))
    draws = draws if model.pair_noise is None else model.pair_noise(batch, draws)
    error, weight = model(batch, draws)
    (error / weight).backward()
    assert error.isfinite()
    condition = None if data.condition is None else data.condition[:2]
    x = model.eval().generate(2, condition=condition, nfe=options["evaluation"]["nfe"])
    assert x.shape == (2, *data.x.shape[1:])
    assert x.isfinite().all()


def refusal(task: str, key: str, value: str) -> str | None:
    """What is said where a switch alone does not go with a task's defaults: why, or what goes; None where it goes."""
    is_flat, is_seen = task in ("obstacle", "torus", "toy2d"), "_image" in task
    if task == "torus" and key == "objective" and value not in ("flow", "flow_map"):
        return "on angles there are flow, flow_map"
    if task == "torus" and key == "schedule":
        return "the path between angles has none; leave it out"
    if task == "torus" and value in ("ddim", "ancestral", "dpm_solver"):
        return "on angles there are euler, midpoint, heun, rk4"
    if key == "schedule" and value != "linear":
        return "use schedule=linear, or objective=v"
    if key == "solver" and value == "flow_map":
        return "needs objective=flow_map"
    if key == "solver" and value.startswith("diffusers_"):
        return "needs objective=noise_prediction or data_prediction or v with a curved schedule"
    if key == "network" and value in IMAGE_NETWORKS and task != "images":
        return "there are mlp, mixer, dit, unet1d, gru" + ("" if is_flat else "$")
    if key == "network" and value == "unet1d" and task in ("torus", "toy2d"):
        return "must be a multiple of 4 for 3 levels; give fewer network.channels"
    if key == "vision" and is_seen and value == "none":
        return "the recipe is for observations with images: choose vision="
    if key == "vision" and not is_seen and value != "none":
        return "the observation has no images; leave it out, or use another task"
    return None


CASES = [(task, key, value) for task in TASKS for key, value in SWITCHES if not (task in DOMAINS and key == "vision")]


@pytest.mark.parametrize(("task", "key", "value"), CASES, ids=["-".join(case) for case in CASES])
def test_each_switch_alone_works_or_says_why_not(task: str, key: str, value: str, tiny_dinov2: str) -> None:
    run: Callable[..., None] = generate_once if task in DOMAINS else act_once
    more = [f"vision.backbone={tiny_dinov2}"] if value == "transformers" else []  # its default is on the hub
    if (reason := refusal(task, key, value)) is None:
        run(task, argument(task, key, value), *more)
    else:
        with pytest.raises(ConfigurationError, match=reason):
            run(task, argument(task, key, value), *more)


# The command itself.


def command_for(key: str, value: str) -> tuple[str, tuple[str, ...]]:
    """A task with which this switch goes, and what makes it small."""
    if key == "vision":
        return ("pusht_state" if value == "none" else "pusht_image"), ()
    if key == "network" and value in IMAGE_NETWORKS:
        return "images", ()
    if key == "schedule":
        return "pusht_state", ("objective=v",)
    if key == "solver" and value == "flow_map":
        return "pusht_state", ("objective=flow_map",)
    if key == "solver" and value.startswith("diffusers_"):
        return "pusht_state", ("objective=noise_prediction",)
    return "pusht_state", ()


@pytest.mark.parametrize(("key", "value"), SWITCHES, ids=["-".join(switch) for switch in SWITCHES])
def test_the_command_runs_once_with_each(
    key: str,
    value: str,
    pusht_store: Path,
    image_store: Path,
    tiny_dinov2: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    task, more = command_for(key, value)
    command = ["train", f"task={task}", f"output_dir={tmp_path / 'run'}", "device=cpu", "training.steps=1"]
    command += [argument(task, key, value), *more, "training.batch_size=2"]
    if task == "images":
        command += ["dataset=digits", "dataset.samples=20", "evaluation.samples=10"]
    else:
        store = image_store if task == "pusht_image" else pusht_store
        command += [f"dataset.path={store}", f"evaluation.episodes={int(key == 'objective')}"]
    command += ["network.width=32", "network.blocks=1"] if key in ("solver", "schedule", "time_density") else []
    if key == "vision" and value in ("timm", "transformers"):
        command += ["vision.weights=null", *([f"vision.backbone={tiny_dinov2}"] if value == "transformers" else [])]
    if key == "vision" and value == "timm":
        command += ["vision.backbone=resnet10t"]
    assert main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "best" / "checkpoint.json").is_file()
