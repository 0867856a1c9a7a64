"""flowchunk episodes-needed: the table, and what describes no test."""

from __future__ import annotations

import pytest

from flowchunk.cli.main import main


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert main(["episodes-needed", *arguments]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_ten_and_twenty_points(capsys: pytest.CaptureFixture[str]) -> None:
    unpaired, *paired = rows(capsys, "p=0.6", "difference=0.1", "power=0.8")
    assert unpaired == ["on different seeds", "-", "356"]
    assert [row[:2] for row in paired] == [["on the same seeds", value] for value in ("0", "0.25", "0.5", "0.75")]
    numbers = [int(row[2]) for row in paired]
    assert numbers == sorted(numbers, reverse=True)
    assert rows(capsys, "p=0.6", "difference=0.2")[0][2] == "82"


def test_the_correlation_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    _, given = rows(capsys, "p=0.6", "difference=0.1", "correlation=0.5")
    assert given == rows(capsys, "p=0.6", "difference=0.1")[3]


def test_correlations_that_cannot_be_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[1] for row in rows(capsys, "p=0.5", "difference=0.4")] == ["-", "0", "0.25"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["p=0.6"], "difference=… must be given"),
        (["p=0.95", "difference=0.1"], "must lie in [0, 1] and differ"),
        (["p=0.5", "difference=0.0"], "must lie in [0, 1] and differ"),
        (["p=0.5", "difference=0.1", "power=1.0"], "power=1 must lie between"),
        (["p=0.5", "difference=0.4", "correlation=0.9"], "cannot have a correlation of 0.9"),
        (["p=0.5", "difference=0.00001"], "ask for a larger difference"),
        (["p=0.5", "diference=0.1"], "did you mean difference?"),
        (["p=1.5", "difference=-0.7"], "must lie in [0, 1] and differ"),
    ],
)
def test_what_describes_no_test_is_explained(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["episodes-needed", *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert expected in message
