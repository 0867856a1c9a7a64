"""Choose episodes by number, and split them into several data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowchunk.datasets.errors import ConfigurationError

_ROUNDING = 1e-9  # of a sum of fractions
_NAME = re.compile(r"[\w-]+")


def select_episodes(episodes: int, *, delete: Sequence[Any] = (), keep: Sequence[Any] | None = None) -> list[int]:
    """The indices that remain of so many episodes, in order.

    delete, keep: indices, or ranges as in Python: "3:7" is 3, 4, 5 and 6. At most one of the two. Raises ConfigurationError
    if both are given, for an episode that does not exist, and if none remains.
    """
    if delete and keep is not None:
        raise ConfigurationError("give either delete or keep, not both")
    named = {index for entry in (delete if keep is None else keep) for index in _indices(entry, episodes)}
    chosen = [index for index in range(episodes) if (index in named) == (keep is not None)]
    if not chosen:
        raise ConfigurationError(f"no episode of {episodes} would be left; change delete or keep")
    return chosen


def split_selected(chosen: Sequence[int], parts: Mapping[str, Any], seed: int) -> dict[str, list[int]]:
    """Indices of episodes for each part, {name: indices in order}, chosen at random by the seed.

    parts: {name: share}; shares are all fractions (floats) of the chosen episodes, up to 1 in total, or all numbers of
    episodes (ints). What remains is in no part. Raises ConfigurationError for other shares, and for a part without episodes.
    """
    stops = _stops(len(chosen), parts)
    order = np.random.default_rng(seed).permutation(len(chosen))
    found, start = {}, 0
    for name, stop in zip(parts, stops, strict=True):
        if not _NAME.fullmatch(str(name)):
            raise ConfigurationError(f"split: {name!r} becomes a part of a file's name; use letters, digits, - and _")
        if stop == start:
            raise ConfigurationError(f"split: {name}={parts[name]} of {len(chosen)} episodes is none; give it more")
        found[str(name)] = [chosen[place] for place in np.sort(order[start:stop]).tolist()]
        start = stop
    return found


def _stops(episodes: int, parts: Mapping[str, Any]) -> list[int]:
    """The place after the last episode of each part, among shuffled episodes."""
    shares = list(parts.values())
    are_counts = all(isinstance(share, int) and not isinstance(share, bool) for share in shares)
    if not are_counts and not all(isinstance(share, float) for share in shares):
        raise ConfigurationError(
            f"split={dict(parts)} must be fractions such as 0.9, or numbers of episodes such as 50, and not a mixture"
        )
    limit = episodes if are_counts else 1 + _ROUNDING
    if min(shares) <= 0 or not sum(shares) <= limit:
        total = f"{episodes} episodes" if are_counts else "1"
        raise ConfigurationError(f"split={dict(parts)} must be above 0 each, and at most {total} in total")
    sums = np.cumsum(shares)
    return [int(stop) for stop in (sums if are_counts else np.rint(sums * episodes))]


def _indices(entry: Any, episodes: int) -> range:
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", str(entry))
    if not match:
        raise ConfigurationError(f"{entry!r} is no episode; give its number, from 0, or a range such as 3:7 (3 to 6)")
    single, first, last = match.groups()
    if single is not None:
        first, last = single, str(int(single) + 1)
    start, stop = int(first or 0), int(last or episodes)
    if not start < stop <= episodes:
        raise ConfigurationError(f"episodes are numbered 0 to {episodes - 1}, so {entry} names none or too many")
    return range(start, stop)
