"""Mesa's software renderer and triton, which torch's optimisers load, each bring an LLVM of their own.

Loaded after Mesa, triton crashes the process; before it, both work.
"""

import importlib
import sys
from contextlib import suppress


def load_triton_before_mesa() -> None:
    """Load triton, if it is installed, unless it is too late: where OSMesa is loaded already."""
    if "mujoco.osmesa" not in sys.modules:
        with suppress(ImportError):
            importlib.import_module("triton")
