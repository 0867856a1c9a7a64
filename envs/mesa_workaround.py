"""Mesa's software renderer and triton, which torch's optimizers load, each contain their own copy of LLVM.

If triton is loaded after Mesa, the process crashes; if it is loaded before, both work.
"""

import importlib
import sys
from contextlib import suppress


def load_triton_before_mesa() -> None:
    """Load triton if it is installed, unless OSMesa is loaded already and it is too late."""
    if "mujoco.osmesa" not in sys.modules:
        with suppress(ImportError):
            importlib.import_module("triton")
