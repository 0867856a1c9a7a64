"""Many tests at once: Holm's correction, and letters for groups that cannot be told apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from string import ascii_letters

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the same order: of tasks, or of pairs of runs.

    Rejecting those of at most alpha makes any false alarm among them happen with a probability of at most alpha, however
    the tests depend on each other. Raises ValueError for values outside [0, 1].
    """
    values = np.asarray(p_values, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(values, kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return [float(value) for value in corrected]


def group_letters(size: int, different: Collection[tuple[int, int]]) -> list[str]:
    """Letters of each of ``size`` items: two share a letter if and only if they are not ``different`` (Piepho 2004).

    Insert and absorb, then leave out letters that say nothing new. Letters are given in the order of the items, so that
    "a" is the group of the first. Raises ValueError for an item that differs from itself, or if the letters do not suffice.
    """
    groups = [frozenset(range(size))]
    for first, second in different:
        if first == second:
            raise ValueError(f"item {first} cannot differ from itself")
        parts = [
            part
            for group in groups
            for part in ((group - {first}, group - {second}) if {first, second} <= group else (group,))
        ]
        groups = [
            part for n, part in enumerate(parts) if not any(part < other for other in parts) and part not in parts[:n]
        ]
    for group in sorted(groups, key=lambda group: (len(group), sorted(group))):
        others = [other for other in groups if other != group]
        if all(any({i, j} <= other for other in others) for i in group for j in group):
            groups = others
    if len(groups) > len(ascii_letters):
        raise ValueError(f"{len(groups)} groups are more than there are letters; compare fewer at once")
    groups = sorted(groups, key=sorted)
    return [
        "".join(letter for letter, group in zip(ascii_letters, groups, strict=False) if i in group) for i in range(size)
    ]
