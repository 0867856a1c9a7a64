"""Poses of a drawn object, found in images without being told any."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flowchunk.datasets.errors import DatasetError
from flowchunk.datasets.planar_object import PlanarObject

T = np.array([[-8, -6], [8, -6], [8, -2], [2, -2], [2, 9], [-2, 9], [-2, -2], [-8, -2]], dtype=float)  # px
L = np.array([[-7, -7], [-2, -7], [-2, 4], [8, 4], [8, 8], [-7, 8]], dtype=float)
SIZE, SCALE = 64, 8  # px, and how much finer is drawn
GOAL = np.array([36.0, 25.0, 2.0])


def drawn(outline: np.ndarray, pose: np.ndarray, tip: np.ndarray | None, *, shows_goal: bool = True) -> np.ndarray:
    """An image with a goal, the object at a pose, and what covers it."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    for (x, y, angle), color in [(GOAL, (140, 230, 140)), (pose, (120, 140, 170))][not shows_goal :]:
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        draw.polygon([tuple((corner + 0.5) * SCALE) for corner in outline @ turn + (x, y)], fill=color)
    if tip is not None:
        x, y = (tip + 0.5) * SCALE
        draw.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), fill=(60, 100, 220))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def scenes(outline: np.ndarray, number: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, true poses, and tips, of which some cover a part of the object."""
    random = np.random.default_rng(0)
    poses = random.uniform([14, 14, -math.pi], [50, 50, math.pi], (number, 3))
    tips = np.clip(poses[:, :2] + random.normal(0, 9, (number, 2)), 3, 60)
    return np.stack([drawn(outline, pose, tip) for pose, tip in zip(poses, tips, strict=True)]), poses, tips


def errors(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In px and degrees, but for a place and direction in the object that are the same in all images."""
    turned = np.angle(np.exp(1j * (found[:, 2] - true[:, 2])))
    turn = np.angle(np.exp(1j * turned).mean())
    offset = (found[:, 0] - true[:, 0]) + 1j * (found[:, 1] - true[:, 1])
    offset = offset * np.exp(-1j * true[:, 2])
    return np.abs(offset - np.median(offset.real) - 1j * np.median(offset.imag)), np.degrees(
        np.abs(np.angle(np.exp(1j * (turned - turn))))
    )


def in_other_light(images: np.ndarray) -> np.ndarray:
    gains = np.random.default_rng(1).uniform(0.75, 1.0, (len(images), 1, 1, 1))
    return (images * gains).clip(0, 255).astype(np.uint8)


def with_noise(images: np.ndarray) -> np.ndarray:
    return (images + np.random.default_rng(1).normal(0, 10, images.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("outline", "change", "is_told"),
    [(T, None, True), (T, None, False), (L, None, False), (T, with_noise, False), (L, in_other_light, False)],
    ids=["told what covers it", "not told", "another outline", "noise", "light"],
)
def test_poses_are_found_without_labels(
    outline: np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None, is_told: bool
) -> None:
    images, true, tips = scenes(outline)
    images = images if change is None else change(images)
    learned = PlanarObject.learn(images[:80], covers=tips[:80] if is_told else None, radius=4)
    found, misses = learned.poses(images, covers=tips if is_told else None, radius=4)
    assert (found.shape, misses.shape) == ((120, 3), (120,))
    distances, degrees = errors(found, true)
    assert np.quantile(distances, 0.9) < 0.1, "px, of images that were not learned from, too"
    assert np.quantile(degrees, 0.9) < 1
    assert degrees.max() < 10
    assert (learned.axis is not None) == (outline is T)
    if change is None:
        np.testing.assert_allclose(learned.color, (120, 140, 170), atol=3)


def test_the_axis_is_that_of_symmetry() -> None:
    images, true, tips = scenes(T)
    found, _ = PlanarObject.learn(images, covers=tips, radius=4).poses(images, covers=tips, radius=4)
    across = np.sin(found[:, 2] - true[:, 2])  # the stem of the T is along y
    np.testing.assert_allclose(np.abs(np.median(across)), 1, atol=1e-3)


def test_a_drawn_goal_is_where_the_object_would_be() -> None:
    images, _, tips = scenes(T)
    learned = PlanarObject.learn(images, covers=tips, radius=4)
    found, _ = learned.poses(np.concatenate([images, drawn(T, GOAL, None)[None]]))
    np.testing.assert_allclose(learned.drawn_pose()[:2], found[-1, :2], atol=0.3)
    assert abs(math.sin((learned.drawn_pose()[2] - found[-1, 2]) / 2)) < math.radians(2)


def test_a_goal_that_is_not_drawn_is_not_found() -> None:
    _, poses, tips = scenes(L)
    images = np.stack([drawn(L, pose, tip, shows_goal=False) for pose, tip in zip(poses, tips, strict=True)])
    with pytest.raises(DatasetError, match="nothing is drawn in the background; give the pose of the goal"):
        PlanarObject.learn(images, covers=tips, radius=4).drawn_pose()


def test_images_in_which_nothing_moves_are_refused() -> None:
    with pytest.raises(DatasetError, match="nothing moves in the images; give images in which the object lies in many"):
        PlanarObject.learn(np.full((20, 32, 32, 3), 250, np.uint8))


@pytest.mark.parametrize(
    ("images", "covers", "message"),
    [
        (np.zeros((5, 8, 8, 3)), None, r"images: expected uint8 \(N, H, W, 3\), RGB from 0 to 255, got float64"),
        (np.zeros((8, 8, 3), np.uint8), None, r"got uint8 \(8, 8, 3\)"),
        (np.zeros((5, 8, 8, 3), np.uint8), np.zeros((4, 2)), r"covers: expected \(N, 2\), x and y .* got \(4, 2\)"),
    ],
)
def test_other_shapes_and_types_are_refused(images: np.ndarray, covers: np.ndarray | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        PlanarObject.learn(images, covers=covers)


def test_of_many_images_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    images, true, tips = scenes(L)
    monkeypatch.setattr("flowchunk.datasets.planar_object.LEARNED_FROM", 60)
    found, _ = PlanarObject.learn(images, covers=tips, radius=4).poses(images, covers=tips, radius=4)
    assert np.quantile(errors(found, true)[0], 0.9) < 0.1
