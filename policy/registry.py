"""Names for what can be chosen by an option: what the package brings, what was registered, and installed plug-ins.

A plug-in is one file and one line: ``SOLVERS.register("mine", MySolver())`` in that file, for whoever imports it, or an entry
point in the plug-in's ``pyproject.toml``, for every command::

    [project.entry-points."flowchunk.solvers"]
    mine = "my_package.my_solver:MY_SOLVER"
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from flowchunk.datasets.errors import ConfigurationError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name → thing, in the order of ``built_in``, registration, entry points. Unknown names raise ConfigurationError.

    kind: what the things are, in the singular ("solver"); their entry points are those of the group ``flowchunk.KINDs``.
    built_in: name → the thing, or ``module:attribute``, imported when it is asked for.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T | str]) -> None:
        self.kind = kind
        self._built_in = dict(built_in)
        self._registered: dict[str, T] = {}
        self._sources: dict[str, str] = {}
        self._found: dict[str, EntryPoint] | None = None

    def register(self, name: str, thing: T) -> T:
        """Make the thing known by this name. Raises ConfigurationError if another one has it."""
        if name in self and (name not in self._registered or self._registered[name] is not thing):
            raise ConfigurationError(f"there is a {self.kind} {name!r} already; choose another name")
        self._registered[name] = thing
        self._sources[name] = str(
            sys._getframe(1).f_globals.get("__name__", "__main__")
        )  # so that checkpoints can name it
        return thing

    def unregister(self, name: str) -> None:
        """Forget what was registered by this name."""
        del self._registered[name]

    def __getitem__(self, name: str) -> T:
        if name in self._built_in:
            thing = self._built_in[name]
            if isinstance(thing, str):
                module, _, attribute = thing.partition(":")
                thing = self._built_in[name] = getattr(import_module(module), attribute)
            return thing
        if name in self._registered:
            return self._registered[name]
        if name in self._entry_points:
            return self._load(name)
        raise ConfigurationError(f"unknown {self.kind} {name!r}; there are {', '.join(self)}")

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._registered or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._built_in, *self._registered, *self._entry_points))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def source(self, name: str) -> str | None:
        """The module that a plug-in comes from; None for what the package brings itself."""
        if name in self._built_in:
            return None
        if name in self._registered:
            return self._sources[name]
        return self._entry_points[name].module

    @property
    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._found is None:
            self._found = {entry.name: entry for entry in entry_points(group=f"flowchunk.{self.kind}s")}
        return self._found

    def _load(self, name: str) -> T:
        entry = self._entry_points[name]
        try:
            thing: T = entry.load()
        except Exception as error:  # whatever the plug-in's import raises
            raise ConfigurationError(
                f"the {self.kind} {name!r} of the installed plug-in {entry.value} cannot be imported: {error!r}"
            ) from error
        return thing
