"""Gymnasium-Robotics' environments, of which some are tasks here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.arguments import require_one_of


def make_robotics_environment(env_id: str, *, task: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """The environment without a time limit, which tasks set themselves.

    task: whose environment it is, for the message. render_mode: None or "rgb_array". Raises ConfigurationError for another
    one, and without the extra ``gymnasium-robotics``.
    """
    require_one_of("render_mode", render_mode, (None, "rgb_array"))
    try:
        import gymnasium_robotics
    except ImportError as error:
        raise ConfigurationError(
            f"task={task} needs the extra gymnasium-robotics ({error}): pip install 'flowchunk[gymnasium-robotics]'"
        ) from error
    gymnasium.register_envs(gymnasium_robotics)
    _compare_types_as_numbers()
    made: gymnasium.Env[Any, Any] = gymnasium.make(
        env_id, render_mode=render_mode, max_episode_steps=-1, disable_env_checker=True
    )
    return made


def _compare_types_as_numbers() -> None:
    """Give Gymnasium-Robotics the types of joints and constraints as numbers.

    It compares them with numbers of the model, which no enum of MuJoCo 4.0 equals: an assertion fails, and mocap bodies,
    by which Fetch moves, would be left where they are.
    """
    import mujoco
    from gymnasium_robotics.utils import mujoco_utils

    numbers = {
        kind.__name__: SimpleNamespace(**{name: int(value) for name, value in kind.__members__.items()})
        for kind in (mujoco.mjtJoint, mujoco.mjtEq)
    }
    mujoco_utils.mujoco = SimpleNamespace(**{**vars(mujoco), **numbers})
