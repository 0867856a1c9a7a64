"""Plots of a data set: what its cameras saw, and how its values move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flowchunk.datasets.episode_source import ACTION, EpisodeSource
from flowchunk.datasets.image_reader import ImageReader

EPISODES = 4
MOMENTS = 5  # of each episode, from its first to its last image
PANELS = 12  # dimensions of each key


def plot_dataset(source: EpisodeSource, directory: Path) -> list[Path]:
    """Write a sheet of images for each camera, a plot of each key's values, and of the episodes' lengths; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [_plot_lengths(source, directory / "lengths.png")]
    for key, field in source.description.observations.items():
        name = source.description.arrays.get(key, key)
        if source.arrays[name].problem:
            continue
        file = directory / f"{key.replace('/', '_')}.png"
        if field.is_image:
            files.append(_plot_images(source, ImageReader.find(source, key, field), file))
        else:
            files.append(_plot_values(source, key, field.names, field.units, file))
    if actions := source.description.actions:
        names, units = [one.name for one in actions], [one.unit for one in actions]
        files.append(_plot_values(source, ACTION, names, units, directory / "action.png"))
    return files


def _plot_lengths(source: EpisodeSource, file: Path) -> Path:
    figure = _figure(6, 3)
    axes = figure.add_subplot(xlabel="time steps", ylabel="episodes", title="Lengths of episodes")
    axes.hist(source.episode_lengths, bins=min(30, len(source.episode_lengths)))
    return _save(figure, file)


def _plot_images(source: EpisodeSource, reader: ImageReader, file: Path) -> Path:
    """A row per episode, images from its start to its end."""
    episodes = _evenly(len(source.episode_lengths), EPISODES)
    figure = _figure(2 * MOMENTS, 2 * len(episodes))
    grid = figure.subplots(len(episodes), MOMENTS, squeeze=False)
    for row, episode in enumerate(episodes):
        for column, number in enumerate(_evenly(int(source.episode_lengths[episode]), MOMENTS)):
            start = int(source.episode_starts[episode]) + number
            axes = grid[row][column]
            axes.imshow(reader.read(start, start + 1)[0])
            axes.set_title(f"episode {episode}, step {number}", fontsize=7)
    for axes in grid.flat:
        axes.axis("off")
    return _save(figure, file)


def _plot_values(source: EpisodeSource, key: str, names: Sequence[str], units: Sequence[str], file: Path) -> Path:
    """A panel per dimension, a line per episode."""
    size = int(np.prod(source.shape(key)))
    shown = min(size, PANELS)
    figure = _figure(4 * min(3, shown), 1.8 * -(-shown // 3))
    panels = figure.subplots(-(-shown // 3), min(3, shown), squeeze=False).flat
    for episode in _evenly(len(source.episode_lengths), EPISODES):
        start, stop = int(source.episode_starts[episode]), int(source.episode_ends[episode])
        values = source.read(key, start, stop).reshape(stop - start, -1)
        for index in range(shown):
            panels[index].plot(values[:, index], lw=0.8, label=f"episode {episode}")
    for index, axes in enumerate(panels):
        if index >= shown:
            axes.axis("off")
            continue
        unit = f" ({units[index]})" if units else ""
        axes.set_title(f"{names[index] if names else index}{unit}", fontsize=8)
        axes.tick_params(labelsize=6)
    cut = f", the first {PANELS} of {size} dimensions" if size > PANELS else ""
    figure.suptitle(f"{key} over the time steps of {EPISODES} episodes{cut}", fontsize=9)
    return _save(figure, file)


def _evenly(count: int, wanted: int) -> list[int]:
    """Up to ``wanted`` different numbers from 0 to count - 1, evenly spaced."""
    return sorted({int(number) for number in np.linspace(0, count - 1, wanted).round()})


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    return file
