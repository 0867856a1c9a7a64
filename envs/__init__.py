"""Act: tasks in MuJoCo, receding-horizon execution and rollouts. Importing this registers the Gymnasium ids."""

import gymnasium

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
