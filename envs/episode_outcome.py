"""Score and success of one episode, which never get worse while it lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class EpisodeOutcome:
    """The best score of an episode so far, in [0, 1], and whether the task has succeeded in it."""

    score: float = 0.0
    is_success: bool = False

    def update(self, score: float, *, is_success: bool) -> None:
        """Take the current step into account."""
        self.score = max(self.score, float(score))  # float and bool, whatever NumPy's comparisons return
        self.is_success = self.is_success or bool(is_success)

    def as_info(self) -> dict[str, Any]:
        """The entries that every environment reports in ``info``."""
        return {"is_success": self.is_success, "score": self.score}
