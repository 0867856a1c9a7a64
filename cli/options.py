"""Parse ``KEY=VALUE`` arguments with Hydra, with errors that suggest corrections.

Names, types and defaults are those of ``flowchunk.cli.schemas``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_origin

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import flowchunk.cli.schemas  # noqa: F401 -- registers the options
from flowchunk.cli.domains import DATASETS, DOMAINS, FOLDER
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.objectives import OBJECTIVES
from flowchunk.policy.sampling import SamplingOptions

GROUPS = ("task", "dataset", "experiment", "network", "vision", "hardware")
KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    list: "a list",
    dict: "a section",
}
RENAMED = {
    "policy.snr_cap": "policy.min_snr_gamma",
    "policy.noise_draws": "policy.num_noise_samples",
    "model.snr_cap": "model.min_snr_gamma",
    "training.accumulate": "training.num_micro_batches",
    "vision.shared": "vision.share_weights",
    "vision.picture_steps": "vision.image_steps",
    "vision.colour_jitter": "vision.color_jitter",
    "samples": "dataset.samples",
    "size": "dataset.size",
    "invert": "dataset.invert",
    "half": "dataset.half",
    "workers": "processes",
}
"""Old names of options: errors name the new one, and runs that were started with the old one can be resumed."""
NOISE_SCALE = "evaluation.noise_scale="
T = TypeVar("T")


def read_options(config: str, overrides: Sequence[str], *, all_given: bool = True) -> dict[str, Any]:
    """The options of ``flowchunk.cli.schemas.COMMANDS[config]`` with the overrides; paths as str.

    all_given: whether required values must be given; otherwise missing ones are ``???``. Raises ConfigurationError for an
    override that is not KEY=VALUE, an unknown or renamed key, an unknown choice, a value of the wrong type, or a missing
    value.
    """
    for override in overrides:
        if "=" not in override or override.startswith(("-", "+", "~", "=")):
            raise ConfigurationError(f"expected KEY=VALUE, but got {override!r}; see --help")
    overrides = [part for override in overrides for part in _spelled_out(override, config)]
    with _explained_errors(config, overrides):
        by_default = _composed(
            config, [override for override in overrides if override.partition("=")[0] in _groups(config)]
        )
        absent = _open_absent_sections(by_default, overrides)
        for override in overrides:
            _check(override, by_default, config)
        into_absent = [override for override in overrides if _section_of(override, absent)]
        composed = _composed(
            config, [_for_hydra(override, by_default) for override in overrides if override not in into_absent]
        )
        for override in into_absent:  # Hydra merges nothing into null
            if OmegaConf.select(composed, section := _section_of(override, absent)) is None:
                OmegaConf.update(composed, section, {}, merge=False)
            parsed = OverridesParser.create().parse_override(_for_hydra(override, by_default))
            OmegaConf.update(composed, parsed.key_or_group, parsed.value(), force_add=True)
        if all_given and (missing := OmegaConf.missing_keys(composed)):
            raise ConfigurationError(f"{', '.join(f'{key}=…' for key in sorted(missing))} must be given; see --help")
        content = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(content, dict)
    options = {str(key): _plain(value) for key, value in content.items()}
    is_given = any(override.startswith(NOISE_SCALE) for override in overrides)
    return options if is_given or config != "train" else _with_fitting_noise_scale(options)


def _with_fitting_noise_scale(options: dict[str, Any]) -> dict[str, Any]:
    """Without the noise scale of a recipe, if the objective does not start from noise."""
    name = options["objective"]
    if name not in OBJECTIVES or OBJECTIVES[name].starts_from_noise:
        return options
    return {**options, "evaluation": {**options["evaluation"], "noise_scale": SamplingOptions.noise_scale}}


def _spelled_out(override: str, config: str) -> list[str]:
    """``task=metaworld/reach`` as ``task=metaworld env.name=reach``, and ``env_id=ID`` of a task as ``task.env_id=ID``."""
    if override.startswith("env_id=") and "task" in _groups(config):
        return [f"task.{override}"]
    task, slash, name = override.removeprefix("task=").partition("/")
    is_variant = override.startswith("task=") and slash and task in choices("task")
    return [f"task={task}", f"env.name={name}"] if is_variant else [override]


def take_checkpoint(config: str, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The path of the checkpoint, which is the first argument, and the other arguments.

    A path may contain "=": it is taken for an option only if it does not exist and the text before "=" names one. Raises
    ConfigurationError if the first argument is not a path.
    """
    first, *rest = arguments or [""]
    if not first or ("=" in first and not Path(first).expanduser().exists() and _is_option(config, first)):
        raise ConfigurationError(f"give the checkpoint first: flowchunk {config} CHECKPOINT [KEY=VALUE ...]")
    return first, rest


def take_cfg(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without Hydra's ``--cfg job``, and whether they held it. Raises ConfigurationError for another --cfg."""
    if "--cfg" not in arguments:
        return list(arguments), False
    index = list(arguments).index("--cfg")
    if (value := [*arguments, ""][index + 1]) != "job":
        raise ConfigurationError(f"--cfg {value}: expected --cfg job, which prints all options")
    return [*arguments[:index], *arguments[index + 2 :]], True


def fill(kind: type[T], values: dict[str, Any], *, section: str) -> T:
    """A dataclass from a section of the options; other keys of the section are ignored. Raises ConfigurationError."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # T is a dataclass
    try:
        return kind(**{name: value for name, value in values.items() if name in names})
    except TypeError as error:
        raise ConfigurationError(f"a value under {section} has the wrong type: {error}") from error


def to_yaml(options: dict[str, Any]) -> str:
    """The options as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(options))


def choices(group: str) -> list[str]:
    """The names of a group's choices."""
    folder = files("flowchunk.configs").joinpath(group)
    in_files = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    registered = ConfigStore.instance().list(group) if group in ConfigStore.instance().repo else []
    return sorted(name.removesuffix(".yaml") for name in {*in_files, *registered} if name.endswith(".yaml"))


def _composed(config: str, overrides: Sequence[str] = ()) -> DictConfig:
    with initialize_config_module("flowchunk.configs", version_base="1.3"):
        return compose(config, overrides=list(overrides))


def _groups(config: str) -> list[str]:
    """The groups of a command."""
    file = files("flowchunk.configs").joinpath(f"{config}.yaml")
    return [group for group in GROUPS if file.is_file() and f"\n  - {group}: " in file.read_text()]


def _needs_task(config: str) -> bool:
    """Whether a command has no default task."""
    file = files("flowchunk.configs").joinpath(f"{config}.yaml")
    return file.is_file() and "\n  - task: ???" in file.read_text()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


# Types


def _find(config: DictConfig, key: str) -> tuple[Node | None, bool]:
    """The node of a dotted key, if there is one, and whether it would be a new key of an open section."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
            return None, False
        is_open = _is_open_section(node) and node is not config
        if part not in node and not OmegaConf.is_missing(node, part):
            return None, is_open
        node = node._get_node(part)
    return node, False


def _open_absent_sections(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Sections of any keys that are null, but of which there are overrides; in ``config`` they are then empty."""
    opened = []
    for override in overrides:
        key, _, value = override.partition("=")
        parts = key.split(".")
        for section in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            node, _ = _find(config, section)
            is_absent = (
                isinstance(node, DictConfig)
                and node._is_none()
                and any(get_origin(kind) is dict for kind in _types(node))
            )
            if is_absent and (section != key or value.startswith("{")):
                OmegaConf.update(config, section, {}, merge=False)
                opened.append(section)
    return opened


def _section_of(override: str, sections: Sequence[str]) -> str:
    """The section among these that an override is of; empty if there is none."""
    key = override.partition("=")[0]
    return next((section for section in sections if key == section or key.startswith(f"{section}.")), "")


def _is_open_section(node: Any) -> bool:
    """Whether a section takes any keys, so that it can also be given as {KEY: VALUE}."""
    return isinstance(node, DictConfig) and node._metadata.object_type is dict


def _types(node: Any, *, of_elements: bool = False) -> tuple[Any, ...]:
    """The types that a node, or its elements, may have; empty for any type."""
    kind = node._metadata.element_type if of_elements else node._metadata.ref_type
    kinds = kind.__args__ if _is_union(kind) else (kind,)
    return () if Any in kinds else tuple(kind for kind in kinds if kind is not NoneType)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _check(override: str, config: DictConfig, name: str) -> None:
    """Raise ConfigurationError if the value of an override does not have the type of its option."""
    key, _, text = override.partition("=")
    node, is_open = _find(config, key)
    if key in _groups(name) or (node is None and not is_open):
        return
    value: Any = OverridesParser.create().parse_override(_for_hydra(override, config)).value()
    may_be_none = node is not None and node._metadata.optional
    is_section = isinstance(node, DictConfig) and node._metadata.object_type is not NoneType
    if is_section and not isinstance(value, Mapping) and not (value is None and may_be_none):
        known = [str(name) for name in node] if isinstance(node, DictConfig) and not node._is_none() else []
        listed = f"; it has {', '.join(known)}" if known else ""
        raise ConfigurationError(f"{key}={text} is not a value but a section; give {key}.KEY=VALUE{listed}")
    kinds = _types(_find(config, key.rpartition(".")[0])[0], of_elements=True) if node is None else _types(node)
    try:
        OmegaConf.update(config.copy(), key, value, force_add=is_open or _is_open_section(node))
        is_right = (value is None and may_be_none) or _is_one_of(kinds, value)
    except OmegaConfBaseException:
        is_right = False
    if not is_right:
        raise ConfigurationError(f"{key}={text} must be {_described(kinds)}")
    if key.rpartition(".")[2] == "seed" and value < 0:
        raise ConfigurationError(f"{key}={text} must be at least 0")


def _is_one_of(kinds: Sequence[Any], value: Any) -> bool:
    """Stricter than OmegaConf, which takes 2 as true, and any number as text."""
    if bool in kinds:
        return isinstance(value, bool)
    return kinds != (str,) or isinstance(value, str)


def _described(kinds: Sequence[Any]) -> str:
    if int in kinds and str in kinds:
        return "a whole number or a name"
    return " or ".join(KINDS.get(getattr(kind, "__origin__", kind), str(kind)) for kind in kinds)


def _for_hydra(override: str, config: DictConfig) -> str:
    """An override in Hydra's grammar: paths and texts are quoted, with ~ expanded in paths; open sections get "++".

    Paths, and texts in sections of texts such as ``state[:2]``, are quoted because Hydra's grammar refuses many of them; null
    and quoted values remain unchanged.
    """
    key, _, value = override.partition("=")
    node, is_open = _find(config, key)
    prefix = "++" if is_open or _is_open_section(node) else ""
    is_path = node is not None and Path in _types(node)
    is_in_texts = is_open and _types(_find(config, key.rpartition(".")[0])[0], of_elements=True) == (str,)
    is_text = is_in_texts and bool(re.match(r"\w[^,]*[\[+ ]", value))
    if not (is_path or is_text) or value in ("", "null") or (value[0] == value[-1] and value[0] in "'\""):
        return f"{prefix}{override}"
    with suppress(RuntimeError):  # an unknown user
        value = str(Path(value).expanduser()) if is_path and value.startswith("~") else value
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # prevents interpolation by OmegaConf
    value = re.sub(r"(\\*)'", r"\1\1\\'", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"{prefix}{key}='{value}'"


def _is_option(config: str, argument: str) -> bool:
    node, is_open = _find(_composed(config), argument.partition("=")[0])
    return node is not None or is_open


# Errors


@contextmanager
def _explained_errors(config: str, overrides: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except ConfigurationError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # the last of a choice that is a number
        raise ConfigurationError(_explain(config, overrides, error)) from error


def _explain(config: str, overrides: Sequence[str], error: Exception) -> str:
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    groups = _groups(config)
    for group in groups:
        if group in given and given[group] not in choices(group):
            if group == "dataset" and given.get("task") in DATASETS:
                return unknown_dataset(given["task"], given[group])
            return f"unknown {group} {given[group]!r}; there are {', '.join(choices(group))}"
    if given.get("task") in DOMAINS and config != "train_generative":
        return f"task={given['task']} is not a robot's task; it is for flowchunk train"
    if given.get("vision") == "none" and "not in 'none'" in str(error):
        encoders = "|".join(name for name in choices("vision") if name != "none")
        return (
            f"vision=none, but the recipe is for observations with images: choose vision={encoders}, or experiment=none"
        )
    if "task" not in given and _needs_task(config):
        return f"task=… must be given; there are {', '.join(choices('task'))}"
    by_default = _composed(config, [f"{group}={given[group]}" for group in groups if group in given])
    known = _keys(by_default)
    for key in given:
        node, is_open = _find(by_default, key)
        if node is None and not is_open and key not in groups:
            if key in RENAMED and _find(by_default, RENAMED[key])[0] is not None:
                return f"{key} was renamed; use {RENAMED[key]}"
            if elsewhere := _choices_with(config, key, given):
                group = key.partition(".")[0]
                chosen = OmegaConf.select(by_default, f"{group}.name")
                return f"{key} is an option of {group}={'|'.join(elsewhere)}, but this recipe has {group}={chosen or 'none'}"
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or _in_any_section(key, known)
            meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
            return f"unknown option {key!r}; {meant}"
    reason = str(error).splitlines()[0]
    for override in overrides:
        try:
            OverridesParser.create().parse_override(_for_hydra(override, by_default))
        except HydraException:
            return (
                f"{override} cannot be read ({reason}); close every bracket and quote, and put a text with special "
                "characters into quotes of its own: \"KEY='a, b)'\""
            )
    return f"cannot use {' '.join(overrides)}: {reason}"


def _choices_with(config: str, key: str, given: Mapping[str, str]) -> list[str]:
    """The networks or encoders that have such an option."""
    groups, group = _groups(config), key.partition(".")[0]
    found = []
    for choice in choices(group) if group in groups and group in ("network", "vision") else ():
        with suppress(HydraException, OmegaConfBaseException):  # a choice that this recipe cannot have
            chosen = {name: given[name] for name in groups if name in given} | {group: choice}
            composed = _composed(config, [f"{name}={value}" for name, value in chosen.items()])
            found += [choice] if _find(composed, key)[0] is not None else []
    return found


def unknown_dataset(task: str, name: str) -> str:
    """The error message for a dataset that a task does not have."""
    known = ", ".join(DATASETS[task])
    folder = (
        f"; give a folder or a zip of images by dataset={FOLDER} dataset.path=PATH" if FOLDER in DATASETS[task] else ""
    )
    return f"unknown dataset {name!r} of task={task}; there {'are' if ',' in known else 'is'} {known}{folder}"


def _in_any_section(key: str, known: Sequence[str]) -> list[str]:
    """Options whose last part is similar to the key, in case its section was left out."""
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
