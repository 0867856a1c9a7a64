"""Tasks as text, "put the cup on the plate": each distinct text is stored once, and each frame has the index of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from flowchunk.datasets.errors import DatasetError

EpisodeTask = str | Sequence[str] | None
NO_TASK = ""


class TaskTable:
    """The distinct tasks of a data set in ``texts``, in the order in which they first appear."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._indices: dict[str, int] = {}

    def add(self, task: EpisodeTask, length: int) -> np.ndarray:
        """The index of each frame's task, (T,) int64, of an episode of ``length`` frames; new texts are added.

        task: a text for all frames, a sequence with a text for each frame, or None, which is the empty text.
        Raises DatasetError if it is neither, or if the sequence has another length.
        """
        if task is None or isinstance(task, str):
            texts = [task or NO_TASK] * length
        else:
            texts = list(task) if isinstance(task, Iterable) else []
            if len(texts) != length or not all(isinstance(text, str) for text in texts):
                raise DatasetError(
                    f"an episode of {length} frames needs a task that is a text, {length} texts or None, but got "
                    f"{task!r:.200}"
                )
        for text in dict.fromkeys(texts):
            if text not in self._indices:
                self._indices[text] = len(self.texts)
                self.texts.append(text)
        return np.array([self._indices[text] for text in texts], dtype=np.int64)
