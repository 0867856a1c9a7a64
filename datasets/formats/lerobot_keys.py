"""How LeRobot's names of features become keys, for data sets and for robots alike."""

from __future__ import annotations

import re
from collections.abc import Iterable


def short_keys(features: Iterable[str]) -> dict[str, str]:
    """A short key for each feature: ``observation.images.front`` is ``front``, if nothing else is."""
    short = {name: re.sub(r"^(observation\.)?(images?\.)?", "", name).replace(".", "_") for name in features}
    counts = {key: list(short.values()).count(key) for key in short.values()}
    return {name: key if counts[key] == 1 else name for name, key in short.items()}
