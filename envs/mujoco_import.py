"""MuJoCo, or the command that repairs a broken installation of it.

From 4.0 on, MuJoCo consists of several packages. Upgrading 3.x in place breaks it with every version of pip: the new parts
are installed first, and removing the old package then deletes some of their files. The repair that MuJoCo itself suggests
installs the newest version of each part, and these versions may differ.
"""

from __future__ import annotations

import re
from importlib.metadata import requires, version

from flowchunk.datasets.errors import SimulationError

__all__ = ["mujoco"]


def _repair_line() -> str:
    """The command that reinstalls MuJoCo and its parts, all at the installed version."""
    parts = [f"mujoco=={version('mujoco')}"]
    parts += [part for part in requires("mujoco") or () if re.fullmatch(r"mujoco-[\w-]+==[\w.]+", part)]
    return f"pip install --force-reinstall --no-deps {' '.join(parts)}"


try:
    import mujoco
except ImportError as error:
    _reason = str(error.__cause__ or error).splitlines()[0].split(". ")[0]
    raise SimulationError(
        f"MuJoCo cannot be imported ({_reason}), as happens after upgrading an older version; repair it with: "
        f"{_repair_line()}"
    ) from error
