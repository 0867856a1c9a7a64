"""Names for what an option can choose: what the package contains, what was registered, and installed plug-ins.

A plug-in is one file and one line: ``SOLVERS.register("mine", MySolver())`` in that file, for programs that import it, or an
entry point in the plug-in's ``pyproject.toml``, for every command::

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
    """A mapping of names to values: the built-in, the registered, then entry points. Unknown names raise ConfigurationError.

    kind: what the values are, in the singular ("solver"); their entry points are in the group ``flowchunk.KINDs``.
    built_in: name → value, or ``module:attribute``, which is imported on first use.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T | str]) -> None:
        self.kind = kind
        self._built_in = dict(built_in)
        self._registered: dict[str, T] = {}
        self._sources: dict[str, str] = {}
        self._installed: dict[str, EntryPoint] | None = None

    def register(self, name: str, value: T) -> T:
        """Make the value available by this name, and return it. Raises ConfigurationError if the name is taken."""
        if name in self and (name not in self._registered or self._registered[name] is not value):
            raise ConfigurationError(f"there is already a {self.kind} {name!r}; choose another name")
        self._registered[name] = value
        caller = sys._getframe(1).f_globals
        self._sources[name] = str(caller.get("__name__", "__main__"))  # so that checkpoints can name it
        return value

    def unregister(self, name: str) -> None:
        """Remove what was registered by this name."""
        del self._registered[name]

    def __getitem__(self, name: str) -> T:
        if name in self._built_in:
            value = self._built_in[name]
            if isinstance(value, str):
                module, _, attribute = value.partition(":")
                value = self._built_in[name] = getattr(import_module(module), attribute)
            return value
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
        """The module that a plug-in comes from; None for what the package contains."""
        if name in self._built_in:
            return None
        if name in self._registered:
            return self._sources[name]
        return self._entry_points[name].module

    @property
    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._installed is None:
            self._installed = {entry.name: entry for entry in entry_points(group=f"flowchunk.{self.kind}s")}
        return self._installed

    def _load(self, name: str) -> T:
        entry = self._entry_points[name]
        try:
            value: T = entry.load()
        except Exception as error:  # whatever the plug-in's import raises
            raise ConfigurationError(
                f"the {self.kind} {name!r} of the installed plug-in {entry.value} cannot be imported: {error!r}"
            ) from error
        return value
