"""Meta-World's 50 manipulation tasks (1910.10897), and the scripted experts that come with them.

``metaworld`` pins MuJoCo 3.3.0, so it needs an environment of its own: see docs/guides/other-tasks.md.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.datasets.specs import ActionDimension, ActionSpec, ObservationField, ObservationSpec
from flowchunk.envs.arguments import require_one_of
from flowchunk.envs.gym_task import NORMALIZED, GymTask
from flowchunk.envs.rendering import OffscreenRenderer

TASKS = [
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "drawer-close",
    "drawer-open",
    "faucet-close",
    "faucet-open",
    "hammer",
    "hand-insert",
    "handle-press",
    "handle-press-side",
    "handle-pull",
    "handle-pull-side",
    "lever-pull",
    "peg-insert-side",
    "peg-unplug-side",
    "pick-out-of-hole",
    "pick-place",
    "pick-place-wall",
    "plate-slide",
    "plate-slide-back",
    "plate-slide-back-side",
    "plate-slide-side",
    "push",
    "push-back",
    "push-wall",
    "reach",
    "reach-wall",
    "shelf-place",
    "soccer",
    "stick-pull",
    "stick-push",
    "sweep",
    "sweep-into",
    "window-close",
    "window-open",
]
CONTROL_HZ = 80.0
POSE = (*"xyz", *(f"quaternion_{axis}" for axis in "xyzw"))
FRAME = (
    *(f"hand_{axis}" for axis in "xyz"),
    "gripper",
    *(f"{name}_{part}" for name in ("object", "other") for part in POSE),
)
STATE = ObservationField(
    (39,),
    (*FRAME, *(f"previous_{name}" for name in FRAME), *(f"goal_{axis}" for axis in "xyz")),
    (*(("m",) * 3 + (NORMALIZED,) + (("m",) * 3 + (NORMALIZED,) * 4) * 2) * 2, *("m",) * 3),
)
CORNER, CORNER_POSITION = "corner2", (0.75, 0.075, 0.7)  # m; nearer than as it comes, as is customary for policies
CAMERAS = {"corner_image": CORNER, "hand_image": "gripperPOV"}
"""The observed images, and Meta-World's names of their cameras."""
IMAGE_SIZE, RENDER_SIZE = 96, 480
IMAGE_FIELDS = {
    **{key: ObservationField((IMAGE_SIZE, IMAGE_SIZE, 3), camera=camera) for key, camera in CAMERAS.items()},
    "proprioception": ObservationField((4,), STATE.names[:4], STATE.units[:4]),
}
TASK = ObservationField((len(TASKS),), tuple(TASKS), ("boolean",) * len(TASKS))
ACTIONS = (
    *(ActionDimension(f"hand_{axis}", NORMALIZED, "world", reference="delta", low=-1.0, high=1.0) for axis in "xyz"),
    ActionDimension("gripper_effort", NORMALIZED, "gripper", low=-1.0, high=1.0),
)


class MetaWorld(GymTask):
    """One of the 50 tasks, with a visible goal, started at random places by the seed.

    Observation: ``state`` (39,) float32: hand (m), gripper, poses of up to two objects, the same of the step before, and the
    goal (m). With observation="image" instead of it ``corner_image`` and ``hand_image`` (96, 96, 3) uint8 and
    ``proprioception`` (4,), hand (m) and gripper. With one_hot also ``task`` (50,), which of the tasks it is, for one policy
    for all. Action: (4,) in [-1, 1], the hand's displacement and the gripper's effort, at 80 Hz. Score and success:
    Meta-World's own success.

    name: of the task, such as "reach". observation: "state" or "image". render_mode: None or "rgb_array". Raises
    ConfigurationError without ``metaworld``, SimulationError for "image" if rendering is not possible.
    """

    def __init__(
        self,
        *,
        name: str = "reach",
        observation: str = "state",
        one_hot: bool = False,
        render_mode: str | None = None,
    ) -> None:
        require_one_of("name", name, TASKS)
        require_one_of("observation", observation, ("state", "image"))
        require_one_of("render_mode", render_mode, (None, "rgb_array"))
        try:
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        except ImportError as error:
            raise ConfigurationError(
                f"task=metaworld needs the package metaworld ({error}), which pins MuJoCo 3.3.0: install both in an "
                "environment of its own, pip install 'flowchunk[metaworld]'"
            ) from error
        made: Any = ALL_V3_ENVIRONMENTS[f"{name}-v3"](render_mode=render_mode)
        made.flowchunk_name = f"{name}-v3"  # for the expert, which gets the innermost environment
        made.seeded_rand_vec, made._freeze_rand_vec = True, False
        made._partially_observable, made._set_task_called = False, True
        del made.sawyer_observation_space  # which is cached, without the goal
        made.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (39,), np.float64)
        super().__init__(made, control_hz=CONTROL_HZ)
        self.name, self._one_hot = name, np.eye(len(TASKS), dtype=np.float32)[TASKS.index(name)] if one_hot else None
        fields = IMAGE_FIELDS if observation == "image" else {"state": STATE}
        self.observation_spec = ObservationSpec(fields | ({"task": TASK} if one_hot else {}))
        self.observation_space = gymnasium.spaces.Dict(
            {key: _space(one) for key, one in self.observation_spec.fields.items()}
        )
        self.action_spec = ActionSpec(ACTIONS, CONTROL_HZ)
        made.model.camera(CORNER).pos[:] = CORNER_POSITION
        made.model.vis.quality.offsamples = 0  # multisampling: software renders ten times faster without
        self._renderers: dict[int, OffscreenRenderer] = {}
        self._has_images = observation == "image"
        if self._has_images:
            self._image(CORNER, IMAGE_SIZE)  # so that a machine that cannot render fails at once

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; Meta-World takes its seed apart from its reset."""
        if seed is not None:
            inner: Any = self.env
            inner.seed(seed)
            inner._last_rand_vec, inner.num_resets = None, 0
        return super().reset(seed=seed, options=options)

    def render(self) -> Any:
        """The corner camera's image (480, 480, 3) uint8, or None without ``render_mode``."""
        return None if self.render_mode is None else self._image(CORNER, RENDER_SIZE)

    def close(self) -> None:
        """Free the environment and its renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers = {}
        super().close()

    def _observe(self, observation: Any) -> dict[str, np.ndarray]:
        observed = {"state": np.array(observation, np.float32)}
        if self._has_images:
            images = {key: self._image(camera, IMAGE_SIZE) for key, camera in CAMERAS.items()}
            observed = images | {"proprioception": observed["state"][:4]}
        return observed if self._one_hot is None else observed | {"task": self._one_hot.copy()}

    def _image(self, camera: str, size: int) -> np.ndarray:
        """(size, size, 3), upright: the corner's camera is mounted upside down."""
        inner: Any = self.env
        if size not in self._renderers:
            self._renderers[size] = OffscreenRenderer(inner.model, height=size, width=size)
        image = self._renderers[size].render(inner.data, camera=camera)
        return image[::-1, ::-1].copy() if camera == CORNER else image


def _space(field: ObservationField) -> gymnasium.spaces.Box:
    if field.is_image:
        return gymnasium.spaces.Box(0, 255, field.shape, np.uint8)
    low, high = (0, 1) if set(field.units) == {"boolean"} else (-np.inf, np.inf)
    return gymnasium.spaces.Box(low, high, field.shape, np.float32)


class MetaWorldExpert:
    """Meta-World's scripted expert for whichever task it is asked to act in. generator: unused; it is deterministic."""

    def __init__(self, generator: np.random.Generator) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        self._policies = ENV_POLICY_MAP

    def reset(self, env: Any) -> None:
        """Begin an episode in Meta-World's environment."""
        self._policy: Any = self._policies[env.flowchunk_name]()

    def act(self, env: Any) -> np.ndarray:
        """The action (4,) in [-1, 1] for the environment's present state."""
        state = env._last_stable_obs if env.curr_path_length else env._get_obs()
        return np.clip(self._policy.get_action(state), -1, 1).astype(np.float32)
