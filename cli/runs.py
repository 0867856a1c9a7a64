"""The folder of a training run: its name, whether it can be resumed, and its files besides those of training."""

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
from flowchunk.policy.diffusion.objectives import RENAMED as RENAMED_OBJECTIVES
from flowchunk.policy.training.config import TrainingConfig
from flowchunk.policy.training.run import holds_checkpoints

CONFIG = "config.yaml"
MAY_DIFFER = (  # options that may change when a run is resumed
    "output_dir",
    "device",
    "logging.",
    "evaluation.",
    "dataset.path",  # the data are compared instead
    "dataset.cache",
    "policy.relative_to",  # the scaling of the actions, which depends on it, is compared; indices became names
    "training.resume",
    "training.prefetch",
    "training.checkpoint_every",
    "training.evaluate_every",
    "training.log_every",
)


def with_output_dir(options: dict[str, Any]) -> dict[str, Any]:
    """The options with an output directory; by default named by task, network and time."""
    if options["output_dir"] is None:
        if options["training"]["resume"]:
            raise ConfigurationError("training.resume=true needs output_dir=DIR, the run to resume")
        now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        options["output_dir"] = str(Path("outputs") / f"{options['task']['name']}-{options['network']['name']}-{now}")
    return options


def training_config(options: Mapping[str, Any]) -> TrainingConfig:
    """The training configuration of the options. Raises ConfigurationError."""
    return fill(TrainingConfig, {**options["training"], "seed": options["seed"]}, section="training")


def write_options(directory: Path, options: Mapping[str, Any]) -> None:
    """Write the options into the run's folder, where they are compared when it is resumed."""
    replace_text(directory / CONFIG, to_yaml(dict(options)))


def finish(options: Mapping[str, Any]) -> Path:
    """Plot the losses of a run, and print its files; returns its folder."""
    directory = Path(options["output_dir"]).expanduser()
    if PartialState().is_main_process:
        plot_loss(directory)
        print_written(
            Console(), directory / "checkpoints" / "best", directory / "metrics.jsonl", directory / "loss.png"
        )
    return directory


def check_folder(options: Mapping[str, Any]) -> bool:
    """Whether the output directory holds a run to resume.

    Raises ConfigurationError if it holds a run that must not be overwritten, or one that was started with other options.
    """
    run_dir = Path(options["output_dir"]).expanduser()
    saved = run_dir / CONFIG
    if not saved.exists() and not holds_checkpoints(run_dir):
        return False
    if not options["training"]["resume"]:
        raise ConfigurationError(
            f"{run_dir} holds a training run; add training.resume=true to resume it, or choose another output_dir"
        )
    if not saved.exists():
        raise ConfigurationError(
            f"{run_dir} holds checkpoints but no {CONFIG}, so the options of their training are unknown; restore it, "
            "or choose another output_dir and start from these weights with training.init_from"
        )
    saved_options = _saved_options(read_config(saved))
    now, defaults = _to_compare(options), _to_compare(_defaults(options))

    def saved_value(key: str) -> Any:
        """The saved value of an option; the default of options that are newer than the run."""
        is_known = any(key == known or key.startswith(f"{known}.") for known in saved_options)
        return saved_options.get(key) if is_known else defaults.get(key)

    if different := sorted(key for key in saved_options.keys() | now.keys() if saved_value(key) != now.get(key)):
        changes = ", ".join(f"{key}: {saved_value(key)} then, {now.get(key)} now" for key in different)
        raise ConfigurationError(f"{run_dir} was started with other options ({changes}); resume it with the same ones")
    return True


def read_config(file: Path) -> dict[str, Any]:
    """The options in a run's ``config.yaml``. Raises ConfigurationError if it is damaged."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # also of the YAML parser
        raise ConfigurationError(
            f"{file} cannot be read ({error}); restore it, or choose another output_dir"
        ) from error
    if not isinstance(content, dict) or not content:
        raise ConfigurationError(f"{file} is empty or damaged; restore it, or choose another output_dir")
    return {str(key): value for key, value in content.items()}


def differing_options(first: Path, second: Path) -> dict[str, tuple[Any, Any]]:
    """The options of two runs' ``config.yaml`` that differ, but for those of machine, files and reports.

    Raises ConfigurationError if one is damaged.
    """
    a, b = (_saved_options(read_config(file)) for file in (first, second))
    return {key: (a.get(key), b.get(key)) for key in sorted({**a, **b}) if a.get(key) != b.get(key)}


def _saved_options(content: dict[str, Any]) -> dict[str, Any]:
    if isinstance(dataset := content.get("dataset"), str):  # the old form, of generated data
        is_known = dataset in choices("dataset")
        content["dataset"] = {"name": dataset} if is_known else {"name": FOLDER, "path": dataset}
    saved = {RENAMED.get(key, key): value for key, value in _to_compare(content).items()}
    if saved.get("network.name") == "mlp":
        saved.setdefault("network.skip", False)  # as it was before it became an option
    return {key: RENAMED_OBJECTIVES.get(value, value) if key == "objective" else value for key, value in saved.items()}


def _defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """The default options for the same task, network and data set."""
    task = options["task"]["name"]
    chosen = [f"task={task}", f"network={options['network']['name']}"]
    if task in DOMAINS:
        return read_options("train_generative", [*chosen, *_dataset_of(options)])
    return read_options("train", [*chosen, "dataset.path=-"])


def _dataset_of(options: Mapping[str, Any]) -> list[str]:
    dataset = options["dataset"]
    return [f"dataset={dataset['name']}", *(["dataset.path=-"] if "path" in dataset else [])]


def _to_compare(options: Any) -> dict[str, Any]:
    """Options by their dotted names, without those that may differ."""
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
