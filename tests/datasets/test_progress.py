"""The progress bar that appears only where work is slow."""

from __future__ import annotations

import pytest

from flowchunk.datasets import progress
from flowchunk.datasets.progress import progress_if_slow


@pytest.mark.parametrize(
    ("patience_s", "visible", "is_shown"), [(-1, True, True), (-1, False, False), (60, True, False)]
)
def test_it_appears_when_patience_is_over(
    patience_s: float,
    visible: bool,
    is_shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", patience_s)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with progress_if_slow("expanding", 10, visible=visible) as advance:
        advance(4)
        advance(6)
    assert ("expanding" in capsys.readouterr().out) == is_shown
