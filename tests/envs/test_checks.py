"""check_task_env: our tasks pass, and each breach of the contract is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from flowchunk.datasets.errors import SimulationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.checks import check_task_env
from flowchunk.envs.contract import TaskEnv


class Point(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A point on a line, as a user writes it."""

    observation_spec = ObservationSpec({"state": ObservationField((1,), ("x",), ("m",))})
    action_spec = ActionSpec((ActionDimension("x", "m", "world", low=-1.0, high=1.0),), control_hz=10)

    def __init__(self) -> None:
        self.observation_space: Any = Dict({"state": Box(-100.0, 100.0, (1,), np.float32)})
        self.action_space: Any = Box(-1.0, 1.0, (1,), np.float32)
        self.noise = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.score = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0.0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if not np.isfinite(action).all():
            raise SimulationError("the action is not finite")
        self.x = (self.x + action).astype(np.float32)
        self.score = max(self.score, float(np.exp(-np.abs(self.x[0]))))
        return self.observe(), 0.0, False, False, self.info()

    def observe(self) -> dict[str, np.ndarray]:
        return {"state": self.x}

    def info(self) -> dict[str, Any]:
        return {"score": self.score, "is_success": self.score > 0.9}


@pytest.mark.parametrize(
    ("env_id", "options"),
    [("PushT-v1", {}), ("PushT-v1", {"observation": "keypoints"}), ("PickPlace-v1", {"action": "end_effector_pose"})],
)
def test_our_tasks_keep_the_contract(env_id: str, options: dict[str, Any]) -> None:
    make = partial(gymnasium.make, f"flowchunk.envs:flowchunk/{env_id}", **options)
    check_task_env(make)
    env = make()
    assert isinstance(env.unwrapped, TaskEnv)
    env.close()


def test_an_environment_of_ones_own_passes() -> None:
    check_task_env(Point)
    assert isinstance(Point(), TaskEnv)


def broken(**members: Any) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A class of points with other members."""
    return type("Broken", (Point,), members)


class Narrow(Point):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-0.5, 1.0, (1,), np.float32)


class Counted(Point):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Discrete(2)


class OtherKeys(Point):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Dict({"position": Box(-100.0, 100.0, (1,), np.float32)})


class FloatImages(Point):
    observation_spec = ObservationSpec({"image": ObservationField((4, 4, 3), camera="top")})

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Dict({"image": Box(0.0, 1.0, (4, 4, 3), np.float32)})


class Remembering(Point):
    """Its reset forgets one thing, which shows after 30 steps."""

    steps = 0

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return super().step(action if self.steps < 30 else action + 0.1)


class Global(Point):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        _, info = super().reset(seed=seed)
        self.x = np.random.default_rng().uniform(-1, 1, 1).astype(np.float32)
        return self.observe(), info


class Falling(Point):
    def info(self) -> dict[str, Any]:
        self.score -= 0.01
        return {"score": float(np.exp(-abs(float(self.x[0])))), "is_success": False}


class TakesAnything(Point):
    def step(self, action: np.ndarray) -> Any:
        return super().step(np.nan_to_num(action))


BROKEN: dict[str, tuple[Callable[[], gymnasium.Env[Any, Any]], str]] = {
    "no spec": (broken(observation_spec=property()), "observation_spec, got none"),
    "discrete": (Counted, r"a Box action space, got .*Discrete\(2\)"),
    "keys": (OtherKeys, r"observation_spec has the keys and shapes .*'state'.* but the observation space .*'position'"),
    "float images": (FloatImages, "'image' is an image and must be uint8, but its space is float32"),
    "bounds": (Narrow, r"action 'x': the spec has bounds -1.0 to 1.0, but the space -0.5 to 1.0"),
    "no outcome": (broken(info=lambda self: {"score": 0.0}), "'is_success'"),
    "score": (Falling, "let the score never fall"),
    "shape": (
        broken(observe=lambda self: {"state": self.x.repeat(2)}),
        "Gymnasium's own check failed|must have the shape",
    ),
    "isolation": (Remembering, r"another observation \['state'\] at step \d+ after another episode"),
    "randomness": (Global, "Gymnasium's own check failed|draw all random numbers from self.np_random"),
    "bad actions": (TakesAnything, "an action of NaN was executed"),
    "hold": (broken(hold_action=lambda self: np.zeros(3)), "hold_action must return 1 finite numbers"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_breach_is_named(name: str) -> None:
    make_env, message = BROKEN[name]
    with pytest.raises(SimulationError, match=message):
        check_task_env(make_env)


@pytest.mark.parametrize("spec", [None, {"pose": (3,)}])
def test_what_recordings_hold_is_a_specification(spec: Any) -> None:
    class Recorded(Point):
        recorded_spec = spec

    with pytest.raises(SimulationError, match=r"recorded_spec of the environment .* to be an ObservationSpec, got"):
        check_task_env(Recorded)
