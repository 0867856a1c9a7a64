"""MuJoCo, or what to type where its installation is broken.

From 4.0 on MuJoCo is several packages. Upgrading 3.x in place leaves it broken, whatever the version of pip: the new parts
are installed first, and with the old package files of theirs are removed. The repair that MuJoCo then advises takes the
newest of each part, and these need not be of one version.
"""

from __future__ import annotations

import re
from importlib.metadata import requires, version

from flowchunk.datasets.errors import SimulationError

__all__ = ["mujoco"]


def _repair_line() -> str:
    """What installs MuJoCo and its parts anew, all at the version that is installed."""
    parts = [f"mujoco=={version('mujoco')}"]
    parts += [part for part in requires("mujoco") or () if re.fullmatch(r"mujoco-[\w-]+==[\w.]+", part)]
    return f"pip install --force-reinstall --no-deps {' '.join(parts)}"


try:
    import mujoco
except ImportError as error:
    _reason = str(error.__cause__ or error).splitlines()[0].split(". ")[0]
    raise SimulationError(
        f"MuJoCo cannot be imported ({_reason}), as happens where an older one was upgraded; mend it by: {_repair_line()}"
    ) from error
