"""Options as dataclasses: schemas for Hydra, made from the code's parameters, so that types and defaults have one place."""

from __future__ import annotations

import collections.abc
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING as REQUIRED


@dataclass(frozen=True)
class Option:
    """An option: its type, as OmegaConf supports it, its default and its meaning."""

    type: Any
    default: Any = REQUIRED
    meaning: str = ""

    def as_field(self) -> Any:
        """The field of a dataclass; mutable defaults are copied."""
        metadata = {"meaning": self.meaning}
        if isinstance(self.default, type) and is_dataclass(self.default):
            return field(default_factory=self.default, metadata=metadata)
        if isinstance(self.default, dict | list):
            return field(default_factory=self.default.copy, metadata=metadata)
        return field(default=self.default, metadata=metadata)


Options = Mapping[str, Option]


def schema(name: str, options: Options, doc: str = "") -> type:
    """A dataclass of these options, for Hydra's ConfigStore."""
    made = make_dataclass(name, [(key, option.type, option.as_field()) for key, option in options.items()])
    made.__doc__ = doc
    return made


def section(name: str, *parts: Options, doc: str = "") -> Option:
    """An option that is a section of the options in ``parts``."""
    made = schema(name, {key: option for part in parts for key, option in part.items()}, doc)
    return Option(made, made, doc)


def options_of(
    kind: Callable[..., Any], *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> dict[str, Option]:
    """An option for each parameter of a class or function, with its type, its default and its meaning in the docstring."""
    function: Any = kind.__init__ if isinstance(kind, type) and not is_dataclass(kind) else kind  # type: ignore[misc]
    hints = get_type_hints(function)
    meanings = meanings_in(kind)
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in without or (only is not None and name not in only):
            continue
        default = _default_of(kind, parameter)
        default = list(default) if isinstance(default, tuple) else default
        found[name] = Option(omegaconf_type(hints[name]), default, meanings.get(name, ""))
    return found


def omegaconf_type(hint: Any) -> Any:
    """A type as OmegaConf supports it: mappings become dict, sequences list, literals str."""
    origin, arguments = get_origin(hint), tuple(omegaconf_type(argument) for argument in get_args(hint))
    if origin is Literal:
        return str
    if origin in (Union, UnionType):
        without_none = tuple(argument for argument in arguments if argument is not type(None))
        if Path in without_none:  # a path, or its text
            without_none = (Path,)
        if len(without_none) > 1 and any(get_origin(argument) for argument in without_none):
            return Any  # OmegaConf has no unions with lists
        kind = without_none[0] if len(without_none) == 1 else Union[without_none]  # noqa: UP007 -- of a variable
        return kind | None if type(None) in arguments else kind
    if origin in (collections.abc.Mapping, dict):
        return dict.__class_getitem__(arguments)
    if origin in (collections.abc.Sequence, list, tuple):
        return list.__class_getitem__(arguments)
    return hint


def meanings_in(kind: Callable[..., Any]) -> dict[str, str]:
    """The meanings of parameters: sentences of the docstring that begin with ``name:`` or ``name, name:``."""
    names = list(inspect.signature(kind).parameters)
    text = " ".join((kind.__doc__ or "").split())
    any_name = "|".join(map(re.escape, names)) or "-"
    begins = list(re.finditer(rf"(?:^|(?<=[.;] ))((?:{any_name})(?:, (?:{any_name}))*): ", text))
    found = {}
    ends = [*(begin.start() for begin in begins[1:]), len(text)]
    for begin, end in zip(begins, ends, strict=False):
        meaning = text[begin.end() : end].strip().rstrip(".;")
        for name in begin[1].split(", "):
            found[name] = re.split(r"\. (?:Raises|For the others|See) ", meaning)[0]
    return found


def _default_of(kind: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if is_dataclass(kind):
        declared = next(entry for entry in fields(kind) if entry.name == parameter.name)
        if declared.default_factory is not MISSING:
            return declared.default_factory()
    return REQUIRED if parameter.default is inspect.Parameter.empty else parameter.default
