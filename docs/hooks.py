"""What MkDocs generates from the code: the commands, the configuration, and the page of compared objectives.

A page of docs/ holds a marker, ``<!-- generated: commands -->``, where the text of a function here is put.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from flowchunk.cli import schemas
from flowchunk.cli.comparison.page import render_page
from flowchunk.cli.main import COMMANDS, main
from flowchunk.cli.options import GROUPS, choices
from flowchunk.cli.structured import schema

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
OBJECTIVES = REPOSITORY / "docs" / "data" / "objectives.json"
TITLES = {
    "train": "flowchunk train",
    "train_generative": "flowchunk train task=toy2d|obstacle|torus|images",
    "convert": "flowchunk data convert",
    "edit": "flowchunk data edit",
    "inspect": "flowchunk data inspect",
    "replay": "flowchunk data replay",
    "compare": "flowchunk compare objectives",
    "compare_runs": "flowchunk compare",
    "episodes_needed": "flowchunk episodes-needed",
    "bench": "flowchunk bench latency",
    "grid": "flowchunk grid train",
}


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
    """The options of each command as a table, and the choices of each group."""
    sections = []
    for name, options in schemas.COMMANDS.items():
        table = "".join(("| option | default | meaning |\n|---|---|---|\n", *_rows(schema(name, options))))
        sections.append(f"## {TITLES.get(name, f'flowchunk {name}')}\n\n{table}")
    for group in GROUPS:
        found = (f"### {group}={name}\n\n```yaml\n{_choice(group, name)}```" for name in choices(group))
        sections.append(f"## Choices of {group}=\n\n" + "\n\n".join(found))
    return "\n\n".join(sections)


def _rows(options: type, prefix: str = "") -> Iterator[str]:
    """A row of the table for every option of a schema."""
    for option in fields(options):
        key, kind = prefix + option.name, option.type
        if isinstance(kind, type) and is_dataclass(kind):
            yield from _rows(kind, f"{key}.")
            continue
        default = option.default_factory() if option.default_factory is not MISSING else option.default
        shown = "required" if default == "???" else f"`{json.dumps(default)}`"
        yield f"| `{key}` | {shown} | {str(option.metadata['meaning']).replace('|', chr(92) + '|')} |\n"


def _choice(group: str, name: str) -> str:
    """A choice as it stands in ``configs/``, or the defaults of what it makes."""
    file = CONFIGS / group / f"{name}.yaml"
    if file.is_file():
        return file.read_text()
    text: str = OmegaConf.to_yaml(ConfigStore.instance().load(f"{group}/{name}.yaml").node)
    return text


GENERATED: dict[str, Callable[[], str]] = {"commands": commands, "configuration": configuration}
