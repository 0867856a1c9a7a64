"""The options of every command, registered with Hydra; types and defaults are those of the classes that sections fill."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from flowchunk.cli.comparison_schemas import EPISODES_NEEDED, POLICY_COMPARISON
from flowchunk.cli.domains import DATASETS, FOLDER
from flowchunk.cli.report_schemas import GRID, REPORT_PAGE
from flowchunk.cli.structured import Option, Options, options_of, schema, section
from flowchunk.datasets.derived_specs import SpecOptions
from flowchunk.datasets.edit import EditOptions
from flowchunk.datasets.formats.writing import TARGETS
from flowchunk.datasets.image_cache import ImageCacheOptions
from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.realtime import RealTimeOptions
from flowchunk.envs.control.safety import SafetyOptions
from flowchunk.envs.evaluation import evaluate_in
from flowchunk.envs.rollout import REPORT_SEED, SELECTION_SEED, rollout
from flowchunk.envs.virtual_delay import VirtualDelay
from flowchunk.policy.data_model import DataConfig
from flowchunk.policy.demonstrations import DatasetOptions
from flowchunk.policy.diffusion.objectives import objective_names
from flowchunk.policy.diffusion.schedules import SCHEDULES
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.diffusion.time_densities import TIME_DENSITIES
from flowchunk.policy.encoders.observation import VISION
from flowchunk.policy.execution.strategies import STRATEGIES
from flowchunk.policy.generative_model import ModelConfig
from flowchunk.policy.networks import NETWORKS
from flowchunk.policy.networks.image_networks import IMAGE_NETWORKS
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.real_time_chunking import PREFIX_METHODS
from flowchunk.policy.sampling import SamplingOptions
from flowchunk.policy.training.config import TrainingConfig

OUTPUT = "default: outputs/TASK-NETWORK-TIME"
SEED = {"seed": Option(int, 0)}
ENV = {"env": Option(dict[str, Any], {}, "env.KEY=VALUE: arguments of the environment, saved with the policy")}
DEVICE = "auto | cpu | cuda | cuda:N | mps; auto: an accelerator if there is one"
PATH_OR_NONE = Path | None
INT_OR_NONE = int | None

TRAINING = section(
    "Training",
    options_of(TrainingConfig, without=("seed",)),
    {
        "resume": Option(bool, False, "continue from the last checkpoint in output_dir, bit for bit on the CPU"),
        "init_from": Option(PATH_OR_NONE, None, "a run or checkpoint to start from"),
    },
)
TASK = section("Task", {"name": Option(str), "env_id": Option(str | None, None), "expert": Option(str | None, None)})
DOMAIN = section("Domain", {"name": Option(str)})
LOGGING = section("Logging", {"wandb": Option(bool, False, "also log to Weights & Biases")})
SOURCES = {
    "sources": Option(
        dict[str, str], {}, "the array that each key reads: NAME, some of its columns, NAME[0:2], or several: A + B[:1]"
    ),
    "image_size": Option(list[int] | None, None, "[height, width]: scale images to this size; default: as recorded"),
}
SPECS = options_of(SpecOptions)


def _alternatives(names: Iterable[str]) -> str:
    return " | ".join(names)


def _model_options(kind: type[ModelConfig]) -> Options:
    """Options of every kind of model for training and sampling, besides its objective and schedule."""
    own = options_of(kind, only=("time_density", "min_snr_gamma"))
    sampling = options_of(SamplingOptions, only=("solver", "eta"))
    return {
        "time_density": replace(own["time_density"], meaning=_alternatives(TIME_DENSITIES)),
        "time_density_options": Option(dict[str, Any], {}, "mean and std of logit_normal, scale of mode"),
        "min_snr_gamma": replace(
            own["min_snr_gamma"], meaning="objective=data_prediction: weigh the error by min(SNR, this); 5 is usual"
        ),
        "solver": replace(sampling["solver"], meaning=f"{_alternatives(SOLVERS)}; default: the objective's own"),
        "eta": sampling["eta"],
    }


def _objective_options() -> Options:
    own = options_of(ModelConfig, only=("objective", "schedule"))
    return {
        "objective": replace(own["objective"], meaning=_alternatives(objective_names())),
        "schedule": replace(own["schedule"], meaning=f"{_alternatives(SCHEDULES)}; default: the objective's own"),
    }


def _renamed(options: Options, names: dict[str, str]) -> Options:
    return {names[name]: option for name, option in options.items() if name in names}


DATASET = section(
    "Dataset",
    {"path": Option(Path, meaning="a data set of any format that flowchunk data inspect reads")},
    options_of(DatasetOptions, only=("validation_fraction", "stored_split")),
    SOURCES,
    SPECS,
    {
        "symmetry": Option(
            dict[str, Any] | None,
            None,
            "also train on mirrored episodes; KEY: {order, sign, offset}, or {transform: NAME} for images",
        )
    },
    _renamed(
        options_of(ImageCacheOptions),
        {"mode": "cache", "directory": "cache_dir", "limit_gb": "cache_limit_gb", "skip_corrupt": "skip_corrupt"},
    ),
    options_of(DatasetOptions, only=("normalizer",)),
)
POLICY = section(
    "Policy",
    options_of(PolicyConfig, only=("observation_steps", "horizon", "n_action_steps")),
    _model_options(PolicyConfig),
    options_of(PolicyConfig, only=("num_noise_samples", "prefix_max", "mask_padding", "relative_to")),
    options_of(PolicyConfig, only=("frame", "estimated", "estimate_every")),
)
MODEL = section(
    "Model",
    _model_options(DataConfig),
    options_of(DataConfig, only=("coupling", "label_dropout", "augment")),
)
EVALUATION = section(
    "Evaluation",
    options_of(evaluate_in, without=("make_env",)),
    options_of(SamplingOptions, only=("noise_scale",)),
)
ENERGY_DISTANCE = section(
    "EnergyDistance",
    {
        "samples": Option(
            int, 1000, "samples compared with new data to choose the best checkpoint; 0: the last is the best"
        ),
        "seed": Option(int, SELECTION_SEED),
        "nfe": Option(INT_OR_NONE, None, "default: 16, or the only one that the objective admits"),
    },
)
COMMON: dict[str, Option] = {
    "task": Option(Any),
    "output_dir": Option(PATH_OR_NONE, None, OUTPUT),
    **SEED,
    **_objective_options(),
    "device": Option(str, "auto", DEVICE),
    "network": Option(Any),
    "training": TRAINING,
    "logging": LOGGING,
}
TRAIN: dict[str, Option] = {
    **COMMON,
    "task": TASK,
    "vision": Option(Any),
    "dataset": DATASET,
    **ENV,
    "policy": POLICY,
    "evaluation": EVALUATION,
}
TRAIN_GENERATIVE: dict[str, Option] = {
    **COMMON,
    "task": DOMAIN,
    "dataset": Option(Any),
    "model": MODEL,
    "evaluation": ENERGY_DISTANCE,
}
SOLVER_AND_DEVICE = {
    "solver": Option(str | None, None, "default: the checkpoint's own"),
    "device": Option(str, "cpu", DEVICE),
}
PREFIX_METHOD = {
    "prefix_method": Option(
        str | None,
        None,
        f"how real_time continues the old chunk: {_alternatives(PREFIX_METHODS)}; default: the policy's own",
    )
}
EPISODE_OPTIONS: dict[str, Option] = {
    "n_action_steps": Option(INT_OR_NONE, None, "default: the policy's own"),
    "noise_scale": Option(float | None, None, "factor of the initial noise; default: the policy's own"),
    "strategy": Option(str, "synchronous", _alternatives(STRATEGIES)),
    **PREFIX_METHOD,
    "reanchor_steps": Option(int, 0, "control steps over which the jump at a new chunk's start fades"),
    "delay": section("VirtualDelay", options_of(VirtualDelay)),
    **options_of(rollout, only=("num_envs", "processes")),
    "env_id": Option(str | None, None, "default: the environment of training"),
    **ENV,
}
NFE = {"nfe": Option(INT_OR_NONE, None, "network evaluations; default: the model's own")}
SAMPLES = {
    "n": Option(INT_OR_NONE, None, "number of samples; default: the domain's own"),
    **options_of(SamplingOptions, only=("guidance",)),
}
REPORT = {"seed": Option(int, REPORT_SEED, "of the first episode; these seeds are not used to choose checkpoints")}
EVAL: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: RUN/eval"),
    "episodes": Option(int, 100),
    **REPORT,
    **NFE,
    **SOLVER_AND_DEVICE,
    **EPISODE_OPTIONS,
    "video": Option(int, 1, "episodes to record as videos"),
    "dataset": section(
        "Recordings",
        {"path": Option(PATH_OR_NONE, None, "recorded episodes to compare with, instead of simulation")},
        SOURCES,
    ),
}
SWEEP: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: RUN/sweep"),
    "nfe": Option(list[Any], [1, 2, 4, 8, 16, 100]),
    **SOLVER_AND_DEVICE,
    **REPORT,
    "episodes": Option(int, 200, "for policies"),
    **EPISODE_OPTIONS,
    **SAMPLES,
}
BENCH: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: RUN/bench"),
    "nfe": Option(list[Any], [1, 2, 4]),
    "n": Option(int, 100, "calls of each kind"),
    **SOLVER_AND_DEVICE,
}
GENERATE: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: RUN/generated"),
    **SAMPLES,
    **SEED,
    **NFE,
    "solver": SOLVER_AND_DEVICE["solver"],
    "label": Option(int | str | None, None, "a class, by number or name; default: all, as in the data"),
    "floor_pairs": Option(int, 8, "pairs of data samples that the measures are averaged over"),
}
OPEN_SECTION = Option(dict[str, Any], {})
TASK_OPTIONS: dict[str, Option] = {
    "task": TASK,
    **dict.fromkeys(("network", "vision"), Option(Any)),
    **ENV,
    **dict.fromkeys(("policy", "training", "evaluation"), OPEN_SECTION),  # set by recipes for training, and ignored
}
RUN: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: RUN/robot"),
    "robot": Option(str, "simulated", "simulated | gym | lerobot | MODULE:CLASS, a driver of yours"),
    "driver": Option(dict[str, Any], {}, "driver.KEY=VALUE: arguments of the driver"),
    "env_id": Option(str | None, None, "of robot=simulated|gym; default: the environment of training"),
    **ENV,
    "rate": Option(float | None, None, "commands per second; default: the robot's own"),
    "dry_run": Option(bool, False, "observe and predict, but command nothing"),
    "episodes": Option(int, 1),
    "seconds": Option(float, 30.0, "that an episode lasts at most"),
    "until_success": Option(bool, True, "end an episode as soon as the robot reports success"),
    **REPORT,
    "outcome": Option(str, "auto", "of an episode: auto | robot (what it reports) | ask | none"),
    "record": Option(PATH_OR_NONE, None, "record all episodes as this data set"),
    "strategy": Option(str | None, None, f"{_alternatives(STRATEGIES)}; default: what policy and delay admit"),
    **PREFIX_METHOD,
    "n_action_steps": Option(INT_OR_NONE, None, "default: the policy's own"),
    "landmarks": Option(dict[str, Any], {}, "landmarks.NAME=[x,y,angle] of its frame; default: those of training"),
    "reanchor_steps": Option(int, 0, "control steps over which the jump at a new chunk's start fades"),
    **NFE,
    "noise_scale": Option(float | None, None, "factor of the initial noise; default: the policy's own"),
    **SOLVER_AND_DEVICE,
    "inference": section("Inference", options_of(InferenceOptions, only=("threads", "delay_ms", "jitter_ms", "seed"))),
    "safety": section("Safety", options_of(SafetyOptions)),
    "realtime": section("RealTime", options_of(RealTimeOptions)),
    "dataset": section(
        "Demonstrated",
        {"path": Option(PATH_OR_NONE, None, "training data, for limits that an older checkpoint lacks")},
        SOURCES,
    ),
}
COLLECT: dict[str, Option] = {
    "output_dir": Option(Path),
    "episodes": Option(int, 200),
    **SEED,
    **TASK_OPTIONS,
    "dataset": OPEN_SECTION,
}
JPEG = {"jpeg": Option(INT_OR_NONE, None, "store images as JPEG with this quality, 1 to 100; default: losslessly")}
CONVERT: dict[str, Option] = {
    "to": Option(str, "flowchunk", f"the format to write: {' | '.join(TARGETS)}"),
    **JPEG,
    "codec": Option(str | None, None, "to=lerobot: images as h264 | av1 video, or as png; default: h264"),
    **TASK_OPTIONS,
    "dataset": section("Sources", SOURCES, SPECS, {"symmetry": Option(Any, None)}),
}
EDIT: dict[str, Option] = {
    **JPEG,
    "merge": Option(list[str], [], "data sets with equal specifications, whose episodes are appended"),
    **options_of(EditOptions),
    "dataset": section("Edited", SOURCES, SPECS),
}
REPLAY: dict[str, Option] = {
    "output_dir": Option(PATH_OR_NONE, None, "default: outputs/replay-NAME"),
    "episodes": Option(INT_OR_NONE, None, "the first so many; default: all"),
    "env_id": Option(str | None, None, "default: the environment of the task"),
    **TASK_OPTIONS,
    "dataset": section("Replayed", SOURCES, SPECS, {"symmetry": Option(Any, None)}),
}
INSPECT: dict[str, Option] = {"output_dir": Option(PATH_OR_NONE, None, "of plots and images; default: none")}
COMPARE: dict[str, Option] = {
    "output_dir": Option(Path, os.fspath("compare-objectives")),
    "dataset": section(
        "Demonstrations",
        {"path": Option(PATH_OR_NONE, None, "demonstrations of Push-T; without them its section is left out")},
    ),
    **SEED,
    "full": Option(bool, False, "five times the training, and 500 episodes"),
    "processes": Option(INT_OR_NONE, None, "variants trained in parallel, one thread each; default: one per core"),
}
COMPARE_RUNS: dict[str, Option] = {**POLICY_COMPARISON, "device": SOLVER_AND_DEVICE["device"]}
COMMANDS: dict[str, Options] = {
    "train": TRAIN,
    "train_generative": TRAIN_GENERATIVE,
    "eval": EVAL,
    "sweep": SWEEP,
    "bench": BENCH,
    "generate": GENERATE,
    "run": RUN,
    "collect": COLLECT,
    "convert": CONVERT,
    "edit": EDIT,
    "inspect": INSPECT,
    "replay": REPLAY,
    "compare": COMPARE,
    "compare_runs": COMPARE_RUNS,
    "episodes_needed": EPISODES_NEEDED,
    "report": REPORT_PAGE,
    "grid": GRID,
}
"""The options of each command, by the name of its configuration."""


def generated_options(name: str) -> Options:
    """The options of a data set for models of generated data."""
    path = {"path": Option(Path, meaning="a folder or a zip of images")} if name == FOLDER else {}
    return {
        "name": Option(str, name),
        **path,
        "samples": Option(INT_OR_NONE, None, "number of training data; default: all, or the domain's own number"),
        "size": Option(INT_OR_NONE, None, "scale images to this width and height in pixels"),
        "invert": Option(bool, False, "invert the brightness of images"),
        "half": Option(
            INT_OR_NONE, None, "0 | 1: train on one of two disjoint halves of the images, to measure memorization"
        ),
    }


SIZE_ARGUMENTS = ("action_size", "horizon", "condition_size", "channels", "size")
ENCODER: dict[str, Option] = {
    "crop": Option(list[int] | None, None, "[height, width]: random crops in training, the center otherwise"),
    "weights": Option(PATH_OR_NONE, None, "pretrained weights: a file or a name (IMAGENET1K_V1, pretrained)"),
    "pretrain_steps": Option(INT_OR_NONE, None, "steps in which keypoints are learned from only the images, before"),
    "share_weights": Option(bool, False, "one encoder for all cameras"),
    "image_steps": Option(INT_OR_NONE, None, "number of latest time steps with images; default: observation_steps"),
    "color_jitter": Option(
        float, 0.0, "random change of brightness, contrast and saturation in training, as a fraction"
    ),
}
PRETRAINED = {"weights": Option(PATH_OR_NONE, "pretrained"), "share_weights": Option(bool, True)}
BACKBONES = {"timm": "vit_small_patch14_dinov2", "transformers": "facebook/dinov2-small"}


def network_options(name: str) -> Options:
    """The arguments of a network's constructor, without the sizes, which follow from the data."""
    kind = {**NETWORKS, **IMAGE_NETWORKS}[name]
    without = tuple(size for size in SIZE_ARGUMENTS if not (name == "unet1d" and size == "channels"))
    return {"name": Option(str, name), **options_of(kind, without=without)}


def vision_options(name: str) -> Options:
    """The options of an image encoder: its own, and those of all encoders."""
    own = options_of(VISION[name], without=("image_size", "architecture", "backbone"))
    if name in BACKBONES:
        own = {"backbone": Option(Path, BACKBONES[name], "a name on the hub or a folder"), **PRETRAINED, **own}
    return {"name": Option(str, name), **ENCODER, **own}


def register() -> None:
    """Register all options with Hydra."""
    store = ConfigStore.instance()
    for command, options in COMMANDS.items():
        has_choices = "task" in options  # configs/COMMAND.yaml lists its groups
        name = f"{command}_options" if has_choices else command
        store.store(name=name, node=schema(command, options))
    for network in (*NETWORKS, *IMAGE_NETWORKS):
        store.store(group="network", name=network, node=schema(network, network_options(network)))
    for vision in VISION:
        store.store(group="vision", name=vision, node=schema(vision, vision_options(vision)))
    for dataset in (name for names in DATASETS.values() for name in names):
        store.store(group="dataset", name=dataset, node=schema(dataset, generated_options(dataset)))
    store.store(group="vision", name="none", node=schema("none", {"name": Option(str | None, None)}))


register()
