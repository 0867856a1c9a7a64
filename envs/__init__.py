"""Tasks in MuJoCo, receding-horizon execution and rollouts. Importing this registers the Gymnasium ids."""

import os
from typing import TYPE_CHECKING

import gymnasium

from flowchunk.datasets.lazy import lazy_exports
from flowchunk.envs.mesa_workaround import load_triton_before_mesa

if TYPE_CHECKING:
    from flowchunk.envs.checks import check_task_env
    from flowchunk.envs.contract import TaskEnv, action_spec_of, observation_spec_of, specs_of
    from flowchunk.envs.evaluation import evaluate_in
    from flowchunk.envs.gym_task import GymTask
    from flowchunk.envs.receding_horizon import RecedingHorizon
    from flowchunk.envs.recording import RecordEpisodes
    from flowchunk.envs.rendering import OffscreenRenderer, project_to_pixels
    from flowchunk.envs.rollout import Rollout, record_episode
    from flowchunk.envs.simulation import environment_maker
    from flowchunk.envs.video import write_video
    from flowchunk.envs.virtual_delay import VirtualDelay
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "checks": ["check_task_env"],
            "contract": ["TaskEnv", "action_spec_of", "observation_spec_of", "specs_of"],
            "evaluation": ["evaluate_in"],
            "gym_task": ["GymTask"],
            "receding_horizon": ["RecedingHorizon"],
            "recording": ["RecordEpisodes"],
            "rendering": ["OffscreenRenderer", "project_to_pixels"],
            "rollout": ["Rollout", "record_episode"],
            "simulation": ["environment_maker"],
            "video": ["write_video"],
            "virtual_delay": ["VirtualDelay"],
        },
    )

__all__ = [
    "GymTask",
    "OffscreenRenderer",
    "RecedingHorizon",
    "RecordEpisodes",
    "Rollout",
    "TaskEnv",
    "VirtualDelay",
    "action_spec_of",
    "check_task_env",
    "environment_maker",
    "evaluate_in",
    "observation_spec_of",
    "project_to_pixels",
    "record_episode",
    "specs_of",
    "write_video",
]

gymnasium.register(
    id="flowchunk/PushT-v1",
    entry_point="flowchunk.envs.tasks.pusht:PushT",
    max_episode_steps=300,
)
gymnasium.register(
    id="flowchunk/PickPlace-v1",
    entry_point="flowchunk.envs.tasks.pick_place:PickPlace",
    max_episode_steps=200,
)
gymnasium.register(
    id="flowchunk/PushTOriginal-v1",
    entry_point="flowchunk.envs.tasks.pusht_original:PushTOriginal",
    max_episode_steps=300,
)
gymnasium.register(
    id="flowchunk/MetaWorld-v1",
    entry_point="flowchunk.envs.tasks.metaworld:MetaWorld",
    max_episode_steps=499,  # after 500 Meta-World refuses to go on
)
gymnasium.register(
    id="flowchunk/AdroitDoor-v1",
    entry_point="flowchunk.envs.tasks.adroit_door:AdroitDoor",
    max_episode_steps=300,
)
gymnasium.register(
    id="flowchunk/FetchPickAndPlace-v1",
    entry_point="flowchunk.envs.tasks.fetch_pick_and_place:FetchPickAndPlace",
    max_episode_steps=50,
)

gymnasium.register(
    id="flowchunk/Robomimic-v1",
    entry_point="flowchunk.envs.tasks.robomimic:Robomimic",
    max_episode_steps=400,  # as robomimic evaluates Lift, Can and Square
)

if os.environ.get("MUJOCO_GL", "").strip().lower() == "osmesa":
    load_triton_before_mesa()  # MuJoCo loads OSMesa as soon as it is imported
