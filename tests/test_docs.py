"""README and guides do what they say: their code runs, on small data and for a few steps; their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import flowchunk.envs  # noqa: F401 -- registers the ids
from flowchunk.cli.main import main
from flowchunk.policy.diffusion.solvers import SOLVERS
from flowchunk.policy.flow import flow_matching_loss, integrate

REPOSITORY = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/guides/your-data.md",
    "docs/guides/folder-to-chunks.md",
    "docs/guides/training.md",
    "docs/guides/extending.md",
    "docs/guides/comparing.md",
    "docs/guides/bring-your-environment.md",
)
RECORDED = REPOSITORY.parent / "shared" / "data" / "lerobot_v2_picknplace"
"""The data set of the page that starts from a folder, in a development environment."""
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>.*?) -->\n)?```(?P<language>python|sh)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]*)(?:#(?P<anchor>[^)]+))?\)")
NOT_RUN = ("not run:", "tests")  # how the markers of blocks begin that are left out: installation, and CI's own line
FILE = "file: "  # how the markers of blocks begin that the reader saves
SMALL = {
    "train": (
        "network.width=32",
        "network.blocks=1",
        "training.steps=4",
        "training.evaluate_every=4",
        "training.batch_size=16",
        "evaluation.episodes=0",
        "device=cpu",
    ),
    "eval": ("episodes=2", "video=1"),
    "sweep": ("episodes=2",),
}
"""What makes a command small; it replaces what the page says."""
SMALL_VALUES = {"steps=10_000": "steps=4", "episodes=20)": "episodes=1)"}
"""What makes a training from Python small, in place of what the page says."""


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and code of each block that is to run, in order; those that are files, with ``file: NAME`` as language."""
    for block in BLOCK.finditer((REPOSITORY / page).read_text()):
        if (block["marker"] or "").startswith(FILE):
            yield block["marker"], block["code"]
        elif not (block["marker"] or "").startswith(NOT_RUN):
            yield block["language"], block["code"]


def run_command(line: str) -> None:
    """One line of a shell, which may be several commands of ours in a row."""
    for command in line.split("&&"):
        program, *arguments = shlex.split(command, comments=True)
        assert program == "flowchunk", f"only flowchunk's own commands run here, so mark this block: {line}"
        small = () if arguments[0] == "eval" and "dataset.path=" in command else SMALL.get(arguments[0], ())
        replaced = {option.partition("=")[0] for option in small}
        kept = [argument for argument in arguments if argument.partition("=")[0] not in replaced]
        assert main([*kept, *small]) == 0, line


def five_lines() -> dict[str, Any]:
    """What the five lines of the README take as given: data, a network, times, and noise to start from."""
    x_1 = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(0))
    given = {"x_1": x_1, "condition": None, "times": torch.linspace(0, 1, 5), "x": torch.ones_like(x_1)}
    return {"torch": torch, "pairwise": pairwise, "velocity": lambda x_t, t, condition: 1 - 2 * x_t, **given}


@pytest.fixture
def small_world(pusht_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recordings that the pages name, and short episodes."""
    (tmp_path / "pusht_cchi_v7_replay.zarr").symlink_to(pusht_store)
    if RECORDED.exists():
        (tmp_path / "picknplace").symlink_to(RECORDED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gymnasium.spec("flowchunk/PushT-v1"), "max_episode_steps", 40)
    monkeypatch.setattr(
        "flowchunk.cli.demo.QUICK", {"demonstrations": 3, "steps": 4, "episodes": 1, "selection_episodes": 0}
    )
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(
    page: str, small_world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "folder-to-chunks" in page and not RECORDED.exists():
        pytest.skip("needs the recorded demonstrations in ../shared/data/lerobot_v2_picknplace")
    names = five_lines()
    monkeypatch.setattr(SOLVERS, "_registered", {})  # what a page registers is gone with it
    for language, code in blocks(page):
        if language == "python":
            for large, small in SMALL_VALUES.items():
                code = code.replace(large, small)
            assert "fit(" not in code or "steps=4" in code, "a training that is not made small"
            exec(compile(code, f"{page}: {code.splitlines()[0]}", "exec"), names)
        elif language.startswith(FILE):
            monkeypatch.syspath_prepend(small_world)
            (small_world / language.removeprefix(FILE)).write_text(code)
        else:
            for line in code.splitlines():
                run_command(line)
    if "RecedingHorizon" in names:
        assert re.search(r"^score \d\.\d\d, success (True|False)$", capsys.readouterr().out, re.MULTILINE)


def test_the_five_lines_are_what_the_package_computes() -> None:
    names = five_lines()
    (code,) = (code for language, code in blocks("README.md") if language == "python" and "x_0, t =" in code)
    velocity, x_1, start, times = (names[name] for name in ("velocity", "x_1", "x", "times"))
    torch.manual_seed(0)
    exec(code, names)
    torch.manual_seed(0)
    x_0, t = torch.randn_like(x_1), torch.rand(len(x_1))
    torch.testing.assert_close(names["loss"], flow_matching_loss(velocity, x_1, x_0=x_0, t=t).mean())
    torch.testing.assert_close(names["x"], integrate(velocity, start, times))


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_found(page: str) -> None:
    fences = (REPOSITORY / page).read_text().count("\n```python\n") + (REPOSITORY / page).read_text().count("\n```sh\n")
    assert len(BLOCK.findall((REPOSITORY / page).read_text())) == fences
    languages = {language for language, _ in blocks(page) if not language.startswith(FILE)}
    assert languages == ({"python"} if page == "docs/guides/extending.md" else {"python", "sh"})


def anchors(page: Path) -> set[str]:
    """How MkDocs and GitHub name the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_the_readme_lead_somewhere() -> None:
    links = list(LINK.finditer((REPOSITORY / "README.md").read_text()))
    assert len(links) > 20
    for link in links:
        target = REPOSITORY / link["path"]
        assert target.is_file(), link[0]
        assert link["anchor"] is None or link["anchor"] in anchors(target), link[0]


def test_the_readme_stays_short() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1000
