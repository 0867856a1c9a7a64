"""Pages in one HTML file: templates beside the code, and everything that they show inside them."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape


def render_template(name: str, **values: Any) -> str:
    """A page from a template of this folder; values are escaped."""
    environment = Environment(loader=PackageLoader("flowchunk.cli", "."), autoescape=select_autoescape())
    environment.globals["fixed"] = fixed
    return environment.get_template(name).render(**values)


def fixed(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; "-" if there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
