"""The folder of a run that the options describe: its name, whether it can be continued, what is written around training."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import OmegaConf
from rich.console import Console

from flowchunk.cli.domains import DOMAINS, FOLDER
from flowchunk.cli.options import RENAMED, choices, fill, read_options, to_yaml
from flowchunk.cli.plots import plot_loss
from flowchunk.cli.reports import print_written
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.checkpoint import replace_text
from flowchunk.policy.diffusion.objectives import RENAMED as OBJECTIVES_THEN
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run import holds_checkpoints

CONFIG = "config.yaml"
MAY_DIFFER = (  # what a run may be resumed with, although it was started with something else
    "output_dir",
    "device",
    "logging.",
    "evaluation.",
    "dataset.path",  # the data themselves are compared
    "dataset.cache",
    "policy.relative_to",  # the scaling of the actions, which depends on it, is compared; indices became names
    "training.resume",
    "training.prefetch",
    "training.checkpoint_every",
    "training.evaluate_every",
    "training.log_every",
)


def with_output_dir(options: dict[str, Any]) -> dict[str, Any]:
    """The options with a directory for the run, named by task, network and time where none is given."""
    if options["output_dir"] is None:
        if options["training"]["resume"]:
            raise ConfigurationError("training.resume=true needs output_dir=DIR, the run to continue")
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        options["output_dir"] = str(Path("outputs") / f"{options['task']['name']}-{options['network']['name']}-{now}")
    return options


def training_config(options: Mapping[str, Any]) -> TrainingConfig:
    """How long and how to train, as the options say. Raises ConfigurationError."""
    return fill(TrainingConfig, {**options["training"], "seed": options["seed"]}, section="training")


def write_options(directory: Path, options: Mapping[str, Any]) -> None:
    """Leave the options in the run's folder, for whoever continues it."""
    replace_text(directory / CONFIG, to_yaml(dict(options)))


def finish(options: Mapping[str, Any]) -> Path:
    """Plot a run's loss, and say what it has written; returns its folder."""
    directory = Path(options["output_dir"]).expanduser()
    if PartialState().is_main_process:
        plot_loss(directory)
        print_written(
            Console(), directory / "checkpoints" / "best", directory / "metrics.jsonl", directory / "loss.png"
        )
    return directory


def check_folder(options: Mapping[str, Any]) -> bool:
    """Whether the folder of the options holds a run to continue.

    Raises ConfigurationError where a run is in the way, or is not the one to continue.
    """
    run_dir = Path(options["output_dir"]).expanduser()
    saved = run_dir / CONFIG
    if not saved.exists() and not holds_checkpoints(run_dir):
        return False
    if not options["training"]["resume"]:
        raise ConfigurationError(
            f"{run_dir} holds a training run; add training.resume=true to continue it, or choose another output_dir"
        )
    if not saved.exists():
        raise ConfigurationError(
            f"{run_dir} holds checkpoints but no {CONFIG}, so it cannot be told what they were trained with; bring it back, "
            "or choose another output_dir and start from these weights with training.init_from"
        )
    before = _saved_options(saved)
    now, defaults = _to_compare(options), _to_compare(_defaults(options))

    def then(key: str) -> Any:
        """What it was; options that came since then were as they are by default."""
        is_known = any(key == known or key.startswith(f"{known}.") for known in before)
        return before.get(key) if is_known else defaults.get(key)

    if different := sorted(key for key in before.keys() | now.keys() if then(key) != now.get(key)):
        changes = ", ".join(f"{key}: {then(key)} then, {now.get(key)} now" for key in different)
        raise ConfigurationError(f"{run_dir} was started with other options ({changes}); resume it with the same ones")
    return True


def _saved_options(file: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # of the YAML parser, too
        raise ConfigurationError(
            f"{file} cannot be read ({error}); bring it back, or choose another output_dir"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigurationError(f"{file} is empty or damaged; bring it back, or choose another output_dir")
    if isinstance(dataset := content.get("dataset"), str):  # as it once was, for generated data
        is_known = dataset in choices("dataset")
        content["dataset"] = {"name": dataset} if is_known else {"name": FOLDER, "path": dataset}
    saved = {RENAMED.get(key, key): value for key, value in _to_compare(content).items()}
    return {key: OBJECTIVES_THEN.get(value, value) if key == "objective" else value for key, value in saved.items()}


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options would be if only what has to be chosen was."""
    task = options["task"]["name"]
    chosen = [f"task={task}", f"network={options['network']['name']}"]
    if task in DOMAINS:
        return read_options("train_generative", [*chosen, *_dataset_of(options)])
    return read_options("train", [*chosen, "dataset.path=-"])


def _dataset_of(options: Mapping[str, Any]) -> list[str]:
    dataset = options["dataset"]
    return [f"dataset={dataset['name']}", *(["dataset.path=-"] if "path" in dataset else [])]


def _to_compare(options: Any) -> dict[str, Any]:
    """Options by their dotted names, without those that do not change what is learned from when."""
    flat = _comparable(options)
    is_path_compared = options.get("task", {}).get("name") in DOMAINS and "path" in options["dataset"]
    return flat | ({"dataset.path": options["dataset"]["path"]} if is_path_compared else {})


def _comparable(options: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _comparable(value, f"{path}.")
        elif not path.startswith(MAY_DIFFER):
            flat[path] = value
    return flat
