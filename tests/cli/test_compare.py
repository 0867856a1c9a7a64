"""flowchunk compare: a page without external files; finished variants are skipped, interrupted ones are resumed."""

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

from flowchunk.cli.comparison import variants as variants_module
from flowchunk.cli.comparison.page import render_page, write_page
from flowchunk.cli.comparison.variants import DIGIT_NFE, PUSHT_NFE, TOY_NFE, Variant, all_variants, run_variant
from flowchunk.cli.main import AFTER_INTERRUPTION, main
from flowchunk.datasets.errors import ConfigurationError
from flowchunk.policy.diffusion.objectives import make_objective, objective_names
from flowchunk.policy.evaluation.image_classifier import train_classifier
from flowchunk.policy.training.trainer import Trainer

NOTHING = "\N{EN DASH}"
VOID = {"meta", "img", "br", "link", "input", "hr"}


def options(**changes: Any) -> dict[str, Any]:
    return {"dataset": {"path": None}, "seed": 0, "full": False} | changes


def small(variant: Variant) -> Variant:
    """The same comparison with a tiny network, a few steps and a few samples."""
    tiny = ("training.steps=6", "training.batch_size=16", "training.log_every=3", "training.checkpoint_every=2")
    network = ("network=mlp", "network.width=16", "network.blocks=1")
    kept = tuple(
        argument for argument in variant.train_arguments if not argument.startswith(("training.steps", "network."))
    )
    few = "episodes=2" if variant.section == "pusht" else "n=32"
    return replace(variant, train_arguments=(*kept, *tiny, *network), sweep_arguments=(variant.sweep_arguments[0], few))


def chosen(store: Path | None, *keys: tuple[str, ...]) -> list[Variant]:
    """Small versions of the variants whose keys begin with one of these."""
    variants = all_variants(options(dataset={"path": None if store is None else str(store)}))
    return [small(variant) for key in keys for variant in variants if variant.key[: len(key)] == key]


@dataclass
class Page(HTMLParser):
    """What a browser would find: rows of each table, images, links, and whether every tag is closed."""

    tables: list[list[list[str]]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
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
            self.images.append(dict(attrs)["src"] or "")

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
    """Train the classifier of digits for one epoch, and restore the number of threads, which variants set to one."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowchunk.cli.domains.images.train_classifier", partial(train_classifier, epochs=1))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def comparison(pusht_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Variant]]:
    """The folder of a comparison of two toys, a pair on digits and an objective on Push-T."""
    folder = tmp_path_factory.mktemp("comparison")
    keys = (("8gaussians", "v", "cosine"), ("8gaussians", "regression"), ("v, sigmoid",), ("mip",))
    variants = chosen(pusht_store, *keys)
    assert len(variants) == 4
    for variant in variants:
        assert run_variant(variant, folder / "variants") == variant.name
    write_page(folder, variants)
    return folder, variants


def variant_json(folder: Path, variant: Variant) -> dict[str, Any]:
    content = json.loads((folder / variant.name / "variant.json").read_text())
    assert isinstance(content, dict)
    return content


# The page


def test_the_page_needs_no_other_file(comparison: tuple[Path, list[Variant]]) -> None:
    page = read(comparison[0] / "index.html")
    assert page.links == page.images
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    text = (comparison[0] / "index.html").read_text()
    assert "http" not in text
    assert "<script" not in text
    assert str(comparison[0]) not in text, "paths of this machine are of no use to readers"


def test_no_image_of_the_page_is_blank(comparison: tuple[Path, list[Variant]]) -> None:
    images = read(comparison[0] / "index.html").images
    assert len(images) == 4  # a plot for each section, and the samples of the digits' only variant
    for url in images:
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_the_page_has_a_row_for_every_variant(comparison: tuple[Path, list[Variant]]) -> None:
    folder, variants = comparison
    toys, digits, pusht = read(folder / "index.html").tables
    assert [row[:2] for row in toys[1:]] == [["v", "cosine"], ["regression", NOTHING]]
    assert all(len(row) == 2 + len(TOY_NFE) + 1 for row in toys)
    ours = variant_json(folder / "variants", variants[0])
    floor = ours["floor"]["sliced_wasserstein"]
    assert toys[1][2:-1] == [f"{row['sliced_wasserstein'] / floor:.2f}" for row in ours["rows"]]
    assert toys[1][-1] == f"{ours['straightness']:.2f}"
    assert toys[2][3:] == [NOTHING] * len(TOY_NFE), "regression admits one evaluation, and has no trajectory"
    heading, values, image = digits
    assert values[:3] == ["v, sigmoid", "v", "sigmoid"]
    assert len(heading) == len(values) == 3 + len(DIGIT_NFE) + 1
    assert image == [""]
    assert [value == NOTHING for value in pusht[1]] == [False, *(nfe != 2 for nfe in PUSHT_NFE)]


def test_the_page_says_what_was_left_out(comparison: tuple[Path, list[Variant]], tmp_path: Path) -> None:
    folder, variants = comparison
    assert "Push-T was left out" not in (folder / "index.html").read_text()
    (tmp_path / "variants").symlink_to(folder / "variants")
    text = write_page(tmp_path, variants[:2]).read_text()
    assert "Push-T was left out" in text
    assert len(read(tmp_path / "index.html").tables) == 1


def test_the_results_are_enough_to_render_the_page_again(comparison: tuple[Path, list[Variant]]) -> None:
    text = (comparison[0] / "results.json").read_text()
    assert render_page(json.loads(text)) == (comparison[0] / "index.html").read_text()
    assert str(comparison[0]) not in text


# Variants


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_variant_is_skipped(comparison: tuple[Path, list[Variant]]) -> None:
    folder, variants = comparison
    before = contents(folder)
    for variant in variants:
        assert run_variant(variant, folder / "variants") == variant.name
    assert contents(folder) == before


def test_a_variant_measured_with_other_options_is_refused(comparison: tuple[Path, list[Variant]]) -> None:
    folder, variants = comparison
    before = contents(folder)
    longer = replace(variants[0], train_arguments=(*variants[0].train_arguments, "training.steps=7"))
    with pytest.raises(ConfigurationError, match=r"other options .*training.steps=6.*choose another output_dir"):
        run_variant(longer, folder / "variants")
    assert contents(folder) == before


def test_a_variant_of_an_earlier_flowchunk_is_refused(comparison: tuple[Path, list[Variant]], tmp_path: Path) -> None:
    folder, (variant, *_) = comparison
    earlier = {name: value for name, value in variant_json(folder / "variants", variant).items() if name != "measures"}
    (tmp_path / variant.name).mkdir()
    (tmp_path / variant.name / "variant.json").write_text(json.dumps(earlier))
    with pytest.raises(ConfigurationError, match=r"by another flowchunk; choose another output_dir"):
        run_variant(variant, tmp_path)


def test_the_results_of_a_variant_are_complete(comparison: tuple[Path, list[Variant]]) -> None:
    folder, variants = comparison
    toy, regression, digits, pusht = (variant_json(folder / "variants", variant) for variant in variants)
    measured = {"training", "sweeping", "measures", "section", "key", "floor", "rows"}
    analyzed = {*measured, "loss_mean", "loss_std"}
    assert toy.keys() == {*analyzed, "straightness"}
    assert regression.keys() == pusht.keys() == measured
    assert digits.keys() == analyzed
    assert [row["nfe"] for row in toy["rows"]] == list(TOY_NFE)
    assert [row["nfe"] for row in pusht["rows"]] == list(PUSHT_NFE)


@pytest.mark.parametrize("where", ["training", "measuring"])
def test_an_interrupted_variant_is_resumed(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (variant,) = chosen(None, ("checkerboard", "flow"))
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
            patch.setattr(variants_module, "sweep", not_measured)
        with pytest.raises(KeyboardInterrupt):
            run_variant(variant, tmp_path)
    assert not (tmp_path / variant.name / "variant.json").exists()
    run_variant(variant, tmp_path)
    assert f"resuming from step {2 if where == 'training' else 6}" in (tmp_path / variant.name / "log.txt").read_text()
    assert variant_json(tmp_path, variant)["key"] == ["checkerboard", "flow", "linear"]


def sections(variants: Sequence[Variant]) -> dict[str, int]:
    return {name: sum(variant.section == name for variant in variants) for name in ("toys", "digits", "pusht")}


def test_every_objective_meets_every_schedule_it_admits() -> None:
    admitted = []
    for objective in objective_names():
        for schedule in ("linear", "linear_beta", "cosine", "sigmoid"):
            try:
                admitted.append(make_objective(objective, schedule=schedule))
            except ValueError:
                assert objective in ("flow", "flow_map", "regression", "mip")
    variants = all_variants(options())
    assert sections(variants) == {
        "toys": 2 * (len(admitted) + 2),
        "digits": 7,
        "pusht": 0,
    }  # two objectives have no schedule
    assert len({variant.name for variant in variants}) == len(variants)


def test_pusht_is_compared_if_its_data_are_given() -> None:
    variants = all_variants(options(dataset={"path": "some.zarr"}))
    assert sections(variants)["pusht"] == 5
    assert {variant.key[0] for variant in variants if variant.section == "pusht"} == {
        "flow",
        "v",
        "noise_prediction",
        "regression",
        "mip",
    }


def test_full_is_five_times_the_training() -> None:
    for quick, full in zip(all_variants(options()), all_variants(options(full=True)), strict=True):
        steps = [
            int(a.partition("=")[2])
            for variant in (quick, full)
            for a in variant.train_arguments
            if a.startswith("training.st")
        ]
        assert steps[1] == 5 * steps[0]


# The command


def test_the_command_runs_the_variants_and_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = chosen(None, ("8gaussians", "mip"))
    monkeypatch.setattr("flowchunk.cli.compare.all_variants", lambda _: variants)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that what the command sets is undone
    assert main(["compare", "objectives", f"output_dir={tmp_path}", "processes=1"]) == 0
    assert f"written: {tmp_path / 'index.html'}" in capsys.readouterr().out
    assert [row[0] for row in read(tmp_path / "index.html").tables[0][1:]] == ["mip"]


COMPARE_SMALL = """if True:
    import sys
    from dataclasses import replace
    from flowchunk.cli import compare
    from flowchunk.cli.comparison import variants
    from flowchunk.cli.main import AFTER_INTERRUPTION, main

    def few(options):
        chosen = [v for v in variants.all_variants(options) if v.key[:2] == ("8gaussians", "noise_prediction")]
        broken = replace(chosen[0], key=("8gaussians", "broken"), train_arguments=("task=toy2d", "dataset=spirals"))
        return [broken, *chosen] if sys.argv[1] == "broken" else chosen

    if __name__ == "__main__":  # the workers import this file too
        compare.all_variants = few
        sys.exit(main(["compare", "objectives", f"output_dir={sys.argv[2]}", f"processes={sys.argv[3]}"]))
"""


@contextmanager
def comparing(tmp_path: Path, which: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, which is killed afterwards."""
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
    """Wait until a variant trains."""
    while not list(folder.glob("variants/*/metrics.jsonl")):
        assert started.poll() is None
        time.sleep(0.2)


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently on Windows")
def test_an_interruption_stops_all_variants_at_once(tmp_path: Path) -> None:
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
    assert not list((tmp_path / "out").glob("variants/*/variant.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently on Windows")
def test_an_error_in_one_variant_stops_the_others(tmp_path: Path) -> None:
    with comparing(tmp_path, "broken") as started:
        _, errors = started.communicate(timeout=90)
    assert started.returncode == 1
    assert errors.startswith("error: ")
    assert "spirals" in errors
    assert not list((tmp_path / "out").glob("variants/*/variant.json"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "flowchunk compare objectives"),
        (["apples"], "expected two runs or more to compare, but got apples"),
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
