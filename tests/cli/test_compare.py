"""flowchunk compare: a page that stands alone, of cells that are done once and go on where they were interrupted."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from flowchunk.cli.comparison import cells as cells_module
from flowchunk.cli.comparison.cells import DIGIT_NFE, PUSHT_NFE, TOY_NFE, Cell, all_cells, run_cell
from flowchunk.cli.comparison.page import render_page, write_page
from flowchunk.cli.main import AFTER_INTERRUPTION, main
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.objectives import make_objective, objective_names
from flowchunk.policy.evaluation.image_classifier import train_classifier
from flowchunk.policy.training.trainer import Trainer

NOTHING = "\N{EN DASH}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def options(**changes: Any) -> dict[str, Any]:
    return {"dataset": {"path": None}, "seed": 0, "full": False} | changes


def small(cell: Cell) -> Cell:
    """The same comparison with a tiny network, a few steps and a few samples."""
    tiny = ("training.steps=6", "training.batch_size=16", "training.log_every=3", "training.checkpoint_every=2")
    network = ("network=mlp", "network.width=16", "network.blocks=1")
    kept = tuple(argument for argument in cell.training if not argument.startswith(("training.steps", "network.")))
    few = "episodes=2" if cell.section == "pusht" else "n=32"
    return replace(cell, training=(*kept, *tiny, *network), sweeping=(cell.sweeping[0], few))


def chosen(store: Path | None, *keys: tuple[str, ...]) -> list[Cell]:
    """Small versions of the cells whose keys begin so."""
    cells = all_cells(options(dataset={"path": None if store is None else str(store)}))
    return [small(cell) for key in keys for cell in cells if cell.key[: len(key)] == key]


@dataclass
class Page(HTMLParser):
    """What a browser would find: rows of each table, pictures, links, and whether every tag is closed."""

    tables: list[list[list[str]]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    open_tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open_tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open_tags):
            self.tables[-1][-1][-1] += data.strip()


def read(file: Path) -> Page:
    page = Page()
    page.feed(file.read_text())
    page.close()
    assert not page.open_tags
    return page


@pytest.fixture(scope="module", autouse=True)
def quick_classifier() -> Iterator[None]:
    """What measures the digits is trained for one epoch; and cells, which run alone, leave the threads as they were."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowchunk.cli.domains.images.train_classifier", partial(train_classifier, epochs=1))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def comparison(pusht_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell]]:
    """The folder of a comparison of two toys, a pair on digits and an objective on Push-T."""
    folder = tmp_path_factory.mktemp("comparison")
    keys = (("8gaussians", "v", "cosine"), ("8gaussians", "regression"), ("v, sigmoid",), ("mip",))
    cells = chosen(pusht_store, *keys)
    assert len(cells) == 4
    for cell in cells:
        assert run_cell(cell, folder / "cells") == cell.name
    write_page(folder, cells)
    return folder, cells


def cell_json(folder: Path, cell: Cell) -> dict[str, Any]:
    content = json.loads((folder / cell.name / "cell.json").read_text())
    assert isinstance(content, dict)
    return content


# The page


def test_the_page_needs_nothing_else(comparison: tuple[Path, list[Cell]]) -> None:
    page = read(comparison[0] / "index.html")
    assert page.links == page.pictures
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    text = (comparison[0] / "index.html").read_text()
    assert "http" not in text
    assert "<script" not in text
    assert str(comparison[0]) not in text, "paths of this machine are of no use to readers"


def test_every_picture_of_the_page_shows_something(comparison: tuple[Path, list[Cell]]) -> None:
    pictures = read(comparison[0] / "index.html").pictures
    assert len(pictures) == 4  # a plot for each section, and the samples of the digits' only cell
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as opened:
            assert len(np.unique(np.asarray(opened.convert("L")))) > 10


def test_the_page_has_a_row_for_every_cell(comparison: tuple[Path, list[Cell]]) -> None:
    folder, cells = comparison
    toys, digits, pusht = read(folder / "index.html").tables
    assert [row[:2] for row in toys[1:]] == [["v", "cosine"], ["regression", NOTHING]]
    assert all(len(row) == 2 + len(TOY_NFE) + 1 for row in toys)
    ours = cell_json(folder / "cells", cells[0])
    floor = ours["floor"]["sliced_wasserstein"]
    assert toys[1][2:-1] == [f"{row['sliced_wasserstein'] / floor:.2f}" for row in ours["rows"]]
    assert toys[1][-1] == f"{ours['straightness']:.2f}"
    assert toys[2][3:] == [NOTHING] * len(TOY_NFE), "regression admits one call, and has no way that could be bent"
    heading, values, picture = digits
    assert values[:3] == ["v, sigmoid", "v", "sigmoid"]
    assert len(heading) == len(values) == 3 + len(DIGIT_NFE) + 1
    assert picture == [""]
    assert [cell == NOTHING for cell in pusht[1]] == [False, *(nfe != 2 for nfe in PUSHT_NFE)]


def test_the_page_says_what_was_left_out(comparison: tuple[Path, list[Cell]], tmp_path: Path) -> None:
    folder, cells = comparison
    assert "Push-T was left out" not in (folder / "index.html").read_text()
    (tmp_path / "cells").symlink_to(folder / "cells")
    text = write_page(tmp_path, cells[:2]).read_text()
    assert "Push-T was left out" in text
    assert len(read(tmp_path / "index.html").tables) == 1


def test_the_results_are_enough_to_render_the_page_again(comparison: tuple[Path, list[Cell]]) -> None:
    text = (comparison[0] / "results.json").read_text()
    assert render_page(json.loads(text)) == (comparison[0] / "index.html").read_text()
    assert str(comparison[0]) not in text


# Cells


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_cell_is_not_done_again(comparison: tuple[Path, list[Cell]]) -> None:
    folder, cells = comparison
    before = contents(folder)
    for cell in cells:
        assert run_cell(cell, folder / "cells") == cell.name
    assert contents(folder) == before


def test_a_cell_measured_otherwise_is_not_taken_for_this_one(comparison: tuple[Path, list[Cell]]) -> None:
    folder, cells = comparison
    before = contents(folder)
    longer = replace(cells[0], training=(*cells[0].training, "training.steps=7"))
    with pytest.raises(ConfigurationError, match=r"other options .*training.steps=6.*choose another output_dir"):
        run_cell(longer, folder / "cells")
    assert contents(folder) == before


def test_a_cell_of_an_earlier_flowchunk_is_not_shown_beside_new_ones(
    comparison: tuple[Path, list[Cell]], tmp_path: Path
) -> None:
    folder, (cell, *_) = comparison
    earlier = {name: value for name, value in cell_json(folder / "cells", cell).items() if name != "measures"}
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / "cell.json").write_text(json.dumps(earlier))
    with pytest.raises(ConfigurationError, match=r"by another flowchunk; choose another output_dir"):
        run_cell(cell, tmp_path)


def test_a_cell_holds_what_was_measured(comparison: tuple[Path, list[Cell]]) -> None:
    folder, cells = comparison
    toy, regression, digits, pusht = (cell_json(folder / "cells", cell) for cell in cells)
    measured = {"training", "sweeping", "measures", "section", "key", "floor", "rows"}
    looked_into = {*measured, "loss_mean", "loss_std"}
    assert toy.keys() == {*looked_into, "straightness"}
    assert regression.keys() == pusht.keys() == measured
    assert digits.keys() == looked_into
    assert [row["nfe"] for row in toy["rows"]] == list(TOY_NFE)
    assert [row["nfe"] for row in pusht["rows"]] == list(PUSHT_NFE)


@pytest.mark.parametrize("where", ["training", "measuring"])
def test_an_interrupted_cell_goes_on(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = chosen(None, ("checkerboard", "flow"))
    train_step = Trainer.train_step

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 3:
            raise KeyboardInterrupt
        return train_step(self)

    def not_measured(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "training":
            patch.setattr(Trainer, "train_step", interrupted)
        else:
            patch.setattr(cells_module, "sweep", not_measured)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, tmp_path)
    assert not (tmp_path / cell.name / "cell.json").exists()
    run_cell(cell, tmp_path)
    assert f"resuming from step {2 if where == 'training' else 6}" in (tmp_path / cell.name / "log.txt").read_text()
    assert cell_json(tmp_path, cell)["key"] == ["checkerboard", "flow", "linear"]


def sections(cells: Sequence[Cell]) -> dict[str, int]:
    return {name: sum(cell.section == name for cell in cells) for name in ("toys", "digits", "pusht")}


def test_every_objective_meets_every_schedule_it_admits() -> None:
    admitted = []
    for objective in objective_names():
        for schedule in ("linear", "linear_beta", "cosine", "sigmoid"):
            try:
                admitted.append(make_objective(objective, schedule=schedule))
            except ValueError:
                assert objective in ("flow", "flow_map", "regression", "mip")
    cells = all_cells(options())
    assert sections(cells) == {"toys": 2 * (len(admitted) + 2), "digits": 7, "pusht": 0}  # two rivals have none
    assert len({cell.name for cell in cells}) == len(cells)


def test_pusht_is_compared_where_its_data_are_given() -> None:
    cells = all_cells(options(dataset={"path": "some.zarr"}))
    assert sections(cells)["pusht"] == 5
    assert {cell.key[0] for cell in cells if cell.section == "pusht"} == {
        "flow",
        "v",
        "noise_prediction",
        "regression",
        "mip",
    }


def test_full_is_five_times_the_training() -> None:
    for quick, full in zip(all_cells(options()), all_cells(options(full=True)), strict=True):
        steps = [
            int(a.partition("=")[2]) for cell in (quick, full) for a in cell.training if a.startswith("training.st")
        ]
        assert steps[1] == 5 * steps[0]


# The command


def test_the_command_runs_the_cells_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = chosen(None, ("8gaussians", "mip"))
    monkeypatch.setattr("flowchunk.cli.compare.all_cells", lambda _: cells)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that what the command sets is taken back
    assert main(["compare", "objectives", f"output_dir={tmp_path}", "processes=1"]) == 0
    assert f"written: {tmp_path / 'index.html'}" in capsys.readouterr().out
    assert [row[0] for row in read(tmp_path / "index.html").tables[0][1:]] == ["mip"]


COMPARE_SMALL = """if True:
    import sys
    from dataclasses import replace
    from flowchunk.cli import compare
    from flowchunk.cli.comparison import cells
    from flowchunk.cli.main import AFTER_INTERRUPTION, main

    def few(options):
        chosen = [cell for cell in cells.all_cells(options) if cell.key[:2] == ("8gaussians", "noise_prediction")]
        broken = replace(chosen[0], key=("8gaussians", "broken"), training=("task=toy2d", "dataset=spirals"))
        return [broken, *chosen] if sys.argv[1] == "broken" else chosen

    if __name__ == "__main__":  # the workers import this file too
        compare.all_cells = few
        sys.exit(main(["compare", "objectives", f"output_dir={sys.argv[2]}", f"processes={sys.argv[3]}"]))
"""


@contextmanager
def comparing(tmp_path: Path, which: str) -> Iterator[subprocess.Popen[str]]:
    """The command in processes of its own, which are gone afterwards."""
    script = tmp_path / "small.py"
    script.write_text(textwrap.dedent(COMPARE_SMALL.replace("if True:", "", 1)))
    command = [sys.executable, str(script), which, str(tmp_path / "out"), "1" if which == "whole" else "2"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as started:
        try:
            yield started
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def wait_for_training(folder: Path, started: subprocess.Popen[str]) -> None:
    """Wait until a cell trains."""
    while not list(folder.glob("cells/*/metrics.jsonl")):
        assert started.poll() is None
        time.sleep(0.2)


@pytest.mark.skipif(sys.platform == "win32", reason="signals go otherwise there")
def test_an_interruption_stops_all_cells_at_once(tmp_path: Path) -> None:
    with comparing(tmp_path, "whole") as started:
        wait_for_training(tmp_path / "out", started)
        workers = psutil.Process(started.pid).children(recursive=True)
        assert workers
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does
        _, errors = started.communicate(timeout=20)
    assert started.returncode == 130
    assert errors.strip() == f"interrupted; {AFTER_INTERRUPTION['compare']}"
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert gone
    assert not alive
    assert not list((tmp_path / "out").glob("cells/*/cell.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals go otherwise there")
def test_an_error_in_one_cell_stops_the_others(tmp_path: Path) -> None:
    with comparing(tmp_path, "broken") as started:
        _, errors = started.communicate(timeout=90)
    assert started.returncode == 1
    assert errors.startswith("error: ")
    assert "spirals" in errors
    assert not list((tmp_path / "out").glob("cells/*/cell.json"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "flowchunk compare objectives"),
        (["apples"], "flowchunk compare objectives"),
        (["objectives", "dataset.path=no/such.zarr"], "dataset.path=no/such.zarr"),
        (["objectives", "processes=0"], "processes=0 must be at least 1"),
        (["objectives", "fulll=true"], "unknown option 'fulll'; did you mean full?"),
        (["objectives", "seed=-1"], "seed=-1 must be at least 0"),
    ],
)
def test_what_cannot_be_compared_is_explained(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments, f"output_dir={tmp_path / 'new'}"] if arguments else ["compare"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message
    assert not (tmp_path / "new").exists()
