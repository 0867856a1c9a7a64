"""robomimic's environment of robosuite, imported and made without the output and the packages that it does not need."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.mesa_workaround import load_triton_before_mesa

NEEDED = (
    "task=robomimic needs the packages robomimic and robosuite ({error}), which need a MuJoCo from 3.3 to 3.7: install them "
    "in an environment of its own, pip install 'flowchunk[robomimic]'"
)


def import_robosuite() -> Any:
    """The package robosuite, with robomimic's environment ready. Raises ConfigurationError if one is not installed."""
    load_triton_before_mesa()  # robosuite loads Mesa when it is imported, whether or not it renders
    try:
        with _quiet(), _mujoco_py():
            import robosuite
            from robomimic.envs import env_robosuite  # noqa: F401 - here, where its own imports succeed
    except ImportError as error:
        raise ConfigurationError(NEEDED.format(error=error)) from error
    return robosuite


def make_robosuite(env_args: Mapping[str, Any], *, cameras: Sequence[str], is_rendered: bool) -> Any:
    """robomimic's environment by the arguments that its data sets store; images (height, width, 3) are uint8.

    Raises ConfigurationError if it cannot be made.
    """
    import_robosuite()
    from robomimic.utils import env_utils, obs_utils

    obs_utils.OBS_KEYS_TO_MODALITIES = obs_utils.OBS_KEYS_TO_MODALITIES or {}  # one for the process, or it fails
    obs_utils.OBS_KEYS_TO_MODALITIES |= {f"{camera}_image": "rgb" for camera in cameras}
    try:
        with _quiet():
            env = env_utils.create_env_from_metadata(
                dict(env_args), render_offscreen=is_rendered, use_image_obs=bool(cameras)
            )
    except Exception as error:  # robosuite raises all kinds, assertions among them
        raise ConfigurationError(
            f"robosuite cannot make {env_args['env_name']} ({type(error).__name__}: {error}); check env.KEY=VALUE, and the "
            "env_args of the data"
        ) from error
    env.postprocess_visual_obs = False
    return env


@contextlib.contextmanager
def seeded_numpy(generator: np.random.Generator) -> Iterator[None]:
    """NumPy's global random numbers, from which robosuite samples, by the generator; afterwards they go on as before."""
    state = np.random.get_state()  # noqa: NPY002 - robosuite has no other
    np.random.seed(generator.integers(2**32))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what both packages print and log at import and construction; failures are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _mujoco_py() -> Iterator[None]:
    """robomimic 0.3.0 imports mujoco_py for the name of an exception, although robosuite no longer uses it."""
    name = "mujoco_py"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    stand_in: Any = types.ModuleType(name)
    stand_in.builder = types.SimpleNamespace(MujocoException=mujoco.FatalError)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]
