"""A ``__repr__`` for dataclasses with arrays: dtypes and shapes instead of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def shape_repr(instance: Any) -> str:
    """``Name(field=…, …)``, with every NumPy array or torch tensor as dtype and shape, such as ``float32 (100, 2)``.

    Arrays in dictionaries and tuples are shown in the same way; fields declared with ``repr=False`` are left out.
    """
    shown = ", ".join(f"{f.name}={_describe(getattr(instance, f.name))}" for f in fields(instance) if f.repr)
    return f"{type(instance).__name__}({shown})"


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_describe(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_describe, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value)
