"""Tasks in MuJoCo, receding-horizon execution and rollouts. Importing this registers the Gymnasium ids."""

import os

import gymnasium

from flowchunk.envs.mesa_workaround import load_triton_before_mesa

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

if os.environ.get("MUJOCO_GL", "").strip().lower() == "osmesa":
    load_triton_before_mesa()  # MuJoCo loads OSMesa as soon as it is imported
