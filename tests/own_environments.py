"""Environments of their own, for packages that do not fit beside the others: named by a variable, or made by .ci/extras."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def python_with(package: str, requirement: str, folder: Path) -> str:
    """A Python that has the package: the one that FLOWCHUNK_PACKAGE names, or that of a new environment in the folder.

    Skips the test if neither is wanted.
    """
    variable = f"FLOWCHUNK_{package.upper()}"
    if variable in os.environ:
        return os.environ[variable]
    if "FLOWCHUNK_ENVIRONMENTS" not in os.environ:
        pytest.skip(
            f"installs {package} into an environment of its own: run .ci/extras, set FLOWCHUNK_ENVIRONMENTS=1, or name the "
            f"Python of an environment that has it with {variable}"
        )
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    installed = str(folder / "bin" / "python")
    subprocess.run([installed, "-m", "pip", "install", "--quiet", requirement], check=True)
    return installed
