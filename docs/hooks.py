"""What MkDocs generates from the code: the commands, the configuration, and the page of compared objectives.

A page of docs/ holds a marker, ``<!-- generated: commands -->``, where the text of a function here is put.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from flowchunk.cli.comparison.page import render_page
from flowchunk.cli.main import COMMANDS, main

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
OBJECTIVES = REPOSITORY / "docs" / "data" / "objectives.json"
GROUPS = ("task", "network", "vision", "hardware")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated in the place of its marker."""
    for name, write in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, write())
    return markdown


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the page of ``flowchunk compare objectives``, rendered from its results."""
    if OBJECTIVES.is_file():
        page = render_page(json.loads(OBJECTIVES.read_text()))
        files.append(File.generated(config, "benchmarks/objectives.html", content=page))
    return files


def commands() -> str:
    """What ``--help`` prints, of ``flowchunk`` and of each of its commands."""
    helps = {"flowchunk": ["--help"], **{f"flowchunk {name}": [name, "--help"] for name in COMMANDS}}
    links = " · ".join(f"[{title}](#{title.replace(' ', '-')})" for title in helps)
    sections = (f"## {title}\n\n```text\n{_printed(arguments)}\n```" for title, arguments in helps.items())
    return "\n\n".join((links, *sections))


def _printed(arguments: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        main(arguments)
    return printed.getvalue().strip()


def configuration() -> str:
    """The options of each command as a table, and the choices of each group as they stand in ``configs/``."""
    sections = []
    for file in sorted(CONFIGS.glob("*.yaml"), key=lambda file: (not file.stem.startswith("train"), file.stem)):
        title, _, meaning = file.read_text().splitlines()[0].removeprefix("# ").partition(": ")
        training = _rows(CONFIGS / "training/standard.yaml", "training.") if file.stem.startswith("train") else ()
        table = "".join(("| option | default | meaning |\n|---|---|---|\n", *_rows(file), *training))
        sections.append(f"## {title}\n\n{meaning}\n\n{table}")
    for group in GROUPS:
        files = sorted(CONFIGS.glob(f"{group}/*.yaml"))
        choices = (f"### {group}={file.stem}\n\n```yaml\n{file.read_text()}```" for file in files)
        sections.append(f"## Choices of {group}=\n\n" + "\n\n".join(choices))
    return "\n\n".join(sections)


def _rows(file: Path, prefix: str = "") -> Iterator[str]:
    """A row of the table for every value of a YAML file, and for every section with a comment."""
    text = file.read_text()
    lines = text.splitlines()

    def rows(node: yaml.MappingNode, prefix: str) -> Iterator[str]:
        for key, value in node.value:
            comment = lines[key.start_mark.line].partition("  # ")[2].replace("|", "\\|")
            is_section = isinstance(value, yaml.MappingNode) and bool(value.value)
            default = "" if is_section else f"`{text[value.start_mark.index : value.end_mark.index]}`"
            if prefix + key.value != "defaults" and (comment or not is_section):
                yield f"| `{prefix}{key.value}` | {default} | {comment} |\n"
            if is_section:
                yield from rows(value, f"{prefix}{key.value}.")

    yield from rows(yaml.compose(text), prefix)


GENERATED: dict[str, Callable[[], str]] = {"commands": commands, "configuration": configuration}
