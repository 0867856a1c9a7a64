"""Turn ``KEY=VALUE`` arguments into values, through Hydra, with errors that say what could have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowchunk.cli.domains import DOMAINS
from flowchunk.datasets.errors import ConfigurationError

OPEN_NODES = (
    "env.",
    "dataset.sources.",
    "dataset.normalizer.",
    "policy.time_density_options.",
    "model.time_density_options.",
)
PATHS = (
    "output_dir",
    "dataset",
    "dataset.path",
    "dataset.cache_dir",
    "training.init_from",
    "vision.weights",
    "vision.backbone",
)
"""Keys whose values are taken as they are, but for ~ in front: folders may have names that Hydra's grammar refuses."""
GROUPS = ("task", "network", "vision", "hardware")
CHOSEN = tuple(f"{group}=" for group in GROUPS)
WHOLE_OR_NULL = (  # other nulls are text
    "nfe",
    "n",
    "n_action_steps",
    "samples",
    "size",
    "half",
    "jpeg",
    "processes",
    "evaluation.nfe",
    "training.warmup_steps",
    "training.evaluate_every",
    "policy.num_noise_samples",
    "vision.image_steps",
    "vision.resize",
)
YES_OR_NULL = ("training.prefetch",)
NUMBER_OR_NULL = ("policy.min_snr_gamma", "model.min_snr_gamma", "noise_scale")
SECTION_OR_NULL = ("dataset.symmetry",)
LIST_OR_NULL = ("policy.relative_to", "network.widths", "vision.crop")
WHOLE_OR_NAME_OR_NULL = ("label",)
NULL_TOO = (*LIST_OR_NULL, "vision.weights")  # whose default may be something else
RENAMED = {
    "policy.snr_cap": "policy.min_snr_gamma",
    "policy.noise_draws": "policy.num_noise_samples",
    "model.snr_cap": "model.min_snr_gamma",
    "training.accumulate": "training.num_micro_batches",
    "vision.shared": "vision.share_weights",
    "vision.picture_steps": "vision.image_steps",
    "vision.colour_jitter": "vision.color_jitter",
}
"""Options of earlier versions: an error names the new one, and a run that was started with the old one can be resumed."""
KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    str: ((str,), "text"),
    list: ((list,), "a list"),
    object: ((int, str), "a whole number or a name"),
}
T = TypeVar("T")


def read_options(config: str, overrides: Sequence[str], *, all_given: bool = True) -> dict[str, Any]:
    """The values of ``configs/CONFIG.yaml`` after the overrides.

    all_given: whether required values must be there; without, those that are not are ``???``. Raises ConfigurationError for
    an override that is no KEY=VALUE, an unknown key or choice, a value of another type than the default's, or a required
    value that is not given.
    """
    for override in overrides:
        if "=" not in override or override.startswith(("-", "+", "~", "=")):
            raise ConfigurationError(f"expected KEY=VALUE, but got {override!r}; see --help")
    opened = [f"++{override}" if override.startswith(OPEN_NODES) else _quoted(override) for override in overrides]
    try:
        with initialize_config_module("flowchunk.configs", version_base="1.3"):
            composed = compose(config, overrides=opened)
            chosen = compose(config, overrides=[one for one in overrides if one.startswith(CHOSEN)])
        if all_given and (missing := OmegaConf.missing_keys(composed)):
            raise ConfigurationError(f"{', '.join(f'{key}=…' for key in sorted(missing))} must be given; see --help")
        content, defaults = OmegaConf.to_container(composed, resolve=True), OmegaConf.to_container(chosen)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_explain(config, overrides, error)) from error
    assert isinstance(content, dict)
    assert isinstance(defaults, dict)
    options = {str(key): value for key, value in content.items()}
    _check_values(options, defaults)
    return options


def take_checkpoint(config: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The path that a command's first argument is, and the arguments after it.

    A path may hold "=": it is an option only where nothing is there and what stands before "=" is one. Raises
    ConfigurationError where no path comes first.
    """
    first, *rest = arguments or [""]
    if not first or ("=" in first and not Path(first).expanduser().exists() and _is_option(config, first)):
        raise ConfigurationError(f"give the checkpoint first: flowchunk {config} CHECKPOINT [KEY=VALUE ...]")
    return first, rest


def take_cfg(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without Hydra's ``--cfg job``, and whether it was there. Raises ConfigurationError for another one."""
    if "--cfg" not in arguments:
        return list(arguments), False
    place = list(arguments).index("--cfg")
    if (what := [*arguments, ""][place + 1]) != "job":
        raise ConfigurationError(f"--cfg {what}: expected --cfg job, which prints all options")
    return [*arguments[:place], *arguments[place + 2 :]], True


def fill(kind: type[T], values: dict[str, Any], *, section: str) -> T:
    """A dataclass from a section of the options; other keys of the section are left alone."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    try:
        return kind(**{name: value for name, value in values.items() if name in names})
    except TypeError as error:
        raise ConfigurationError(f"a value under {section} has the wrong type: {error}") from error


def to_yaml(options: dict[str, Any]) -> str:
    """The options as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(options))


def choices(group: str) -> list[str]:
    """Names that ``GROUP=`` accepts."""
    folder = files("flowchunk.configs").joinpath(group)
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _quoted(override: str) -> str:
    """A path's override as Hydra has to be given it, with ~ expanded; null and what is quoted already stay as they are."""
    key, _, value = override.partition("=")
    if key not in PATHS or value in ("", "null") or (value[0] == value[-1] and value[0] in "'\""):
        return override
    with suppress(RuntimeError):  # there is no such user
        value = str(Path(value).expanduser()) if value.startswith("~") else value
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation of OmegaConf's
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"{key}='{value}'"


def _is_option(config: str, argument: str) -> bool:
    key = argument.partition("=")[0]
    with initialize_config_module("flowchunk.configs", version_base="1.3"):
        return key.startswith(OPEN_NODES) or key in _keys(compose(config))


def _check_values(values: Mapping[str, Any], defaults: Mapping[Any, Any], prefix: str = "") -> None:
    for key, default in defaults.items():
        path, value = f"{prefix}{key}", values[key]
        if path in SECTION_OR_NULL and (value is None or (default is None and isinstance(value, Mapping))):
            continue
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{path}={value} is not a value but a section; give {path}.KEY=VALUE")
            _check_values(value, default, f"{path}.")
            continue
        null_kind = _kind_of_null(path)
        accepted, description = KINDS[null_kind if default is None else type(default)]
        if type(value) not in accepted and value != default and not (path in NULL_TOO and value is None):
            raise ConfigurationError(f"{path}={value} must be {description}")
        if key == "seed" and value < 0:
            raise ConfigurationError(f"{path}={value} must be at least 0")


def _kind_of_null(path: str) -> type:
    kinds = (
        (int, WHOLE_OR_NULL),
        (bool, YES_OR_NULL),
        (list, LIST_OR_NULL),
        (float, NUMBER_OR_NULL),
        (object, WHOLE_OR_NAME_OR_NULL),
    )
    return next((kind for kind, paths in kinds if path in paths), str)


def _explain(config: str, overrides: Sequence[str], error: Exception) -> str:
    given = {pair[0]: pair[1] for pair in (override.lstrip("+").split("=", 1) for override in overrides)}
    text = files("flowchunk.configs").joinpath(f"{config}.yaml").read_text()
    groups = [group for group in GROUPS if f"\n  - {group}: " in text]
    for group in groups:
        if group in given and given[group] not in choices(group):
            return f"unknown {group} {given[group]!r}; there are {', '.join(choices(group))}"
    if given.get("task") in DOMAINS and config != "train_generative":
        return f"task={given['task']} is no robot's: its data are made when it is trained, by flowchunk train"
    if "task" in groups and "task" not in given:
        return f"task=… must be given; there are {', '.join(choices('task'))}"
    with initialize_config_module("flowchunk.configs", version_base="1.3"):
        known = _keys(compose(config, overrides=[f"{group}={given[group]}" for group in groups if group in given]))
    for key, value in given.items():
        if any(name.startswith(f"{key}.") for name in known) and key not in groups:
            return f"{key}={value} is not a value but a section; give {key}.KEY=VALUE"
        if key not in known and not key.startswith(OPEN_NODES) and key not in groups:
            if key in RENAMED:
                return f"{key} was renamed; use {RENAMED[key]}"
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or _in_any_section(key, known)
            meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
            return f"unknown option {key!r}; {meant}"
    return f"cannot use {' '.join(overrides)}: {str(error).splitlines()[0]}"


def _in_any_section(key: str, known: Sequence[str]) -> list[str]:
    """Options whose last part is much like the key, for those who left the section out."""
    parts = {path.rpartition(".")[2] for path in known}
    near = difflib.get_close_matches(key.rpartition(".")[2], parts, n=2, cutoff=0.7)
    return sorted(path for path in known if path.rpartition(".")[2] in near)[:3]


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        path = prefix + str(key)
        node = None if OmegaConf.is_missing(config, key) else config[key]
        found += [path, *_keys(node, f"{path}.")] if isinstance(node, DictConfig) else [path]
    return found
