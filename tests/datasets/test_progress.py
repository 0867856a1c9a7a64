"""The progress bar that appears only if work is slow."""

from __future__ import annotations

import pytest

from flowchunk.datasets import progress
from flowchunk.datasets.progress import progress_if_slow


@pytest.mark.parametrize(
    ("patience_s", "visible", "is_shown"), [(-1, True, True), (-1, False, False), (60, True, False)]
)
def test_it_appears_after_a_delay(
    patience_s: float,
    visible: bool,
    is_shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_S", patience_s)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a terminal
    with progress_if_slow("decoding", 10, visible=visible) as advance:
        advance(4)
        advance(6)
    assert ("decoding" in capsys.readouterr().out) == is_shown
