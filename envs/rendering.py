"""Pictures of a MuJoCo scene without a display: EGL, else OSMesa, else an error that says what to install.

MuJoCo settles on a drawing backend when it is first imported, which may have happened long before anybody wants a
picture. So the OpenGL context is made here, when the first picture is wanted, whatever MuJoCo settled on.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import sys
from contextlib import suppress
from typing import Any

import mujoco
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowchunk.datasets.errors import SimulationError

_LIBRARIES = {"egl": ("libEGL.so.1",), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6")}
_NATIVE = {"darwin": "cgl", "win32": "glfw"}
_ALIASES = {
    "glx": "glfw",
    "wgl": "glfw",
    "enable": "glfw",
    "enabled": "glfw",
    "on": "glfw",
    "true": "glfw",
    "1": "glfw",
}
_WHAT_TO_DO = (
    "install `libegl1 libgl1` (EGL) or `libosmesa6` (slower, no driver needed), both Debian packages, and leave the "
    "variable MUJOCO_GL unset, or work without pictures (render_mode=None)"
)


def choose_backend() -> str | None:
    """The OpenGL backend to draw with, also put into the variable MUJOCO_GL where that is unset.

    Returns MUJOCO_GL where the user has set it; else "egl" or "osmesa", the first whose library can be loaded; else
    None. On macOS and Windows it is the system's own.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip() or _NATIVE.get(sys.platform)
    if chosen is None:
        chosen = next((name for name, libraries in _LIBRARIES.items() if any(map(_can_load, libraries))), None)
    if chosen is not None:
        os.environ["MUJOCO_GL"] = chosen
    return chosen


class OffscreenRenderer:
    """Draws one camera of a model into arrays.

    height, width: of the picture in pixels. Raises SimulationError where no OpenGL context can be made.
    """

    def __init__(self, model: mujoco.MjModel, *, camera: str, height: int, width: int) -> None:
        self._model = model
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera(camera).id
        self._options = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 100)
        # Without these two a software renderer draws up to a hundred times faster.
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._picture = np.empty((height, width, 3), dtype=np.uint8)
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._gl: Any = _open_gl_context(width, height)
        try:
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        except Exception as error:
            self._gl.free()
            raise SimulationError(f"expected to draw into an OpenGL context, got {error!r}; {_WHAT_TO_DO}") from error
        atexit.register(self.close)  # once MuJoCo has closed its display at exit, contexts cannot be freed any more

    def render(self, data: mujoco.MjData) -> NDArray[np.uint8]:
        """A picture of the state in ``data``: (height, width, 3), uint8, top row first."""
        self._gl.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._picture, None, self._viewport, self._context)
        return self._picture[::-1].copy()

    def close(self) -> None:
        """Free the context; the renderer cannot be used afterwards."""
        atexit.unregister(self.close)
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def project_to_pixels(
    model: mujoco.MjModel, data: mujoco.MjData, points: ArrayLike, *, camera: str, height: int, width: int
) -> NDArray[np.float64]:
    """Where points of the world appear in a camera's picture (pinhole projection).

    points: (N, 3) in metres, in front of the camera. Returns (N, 2) in pixels, x to the right and y down from the top
    left corner; points out of the picture have pixels out of it.
    """
    view = data.camera(camera)
    right, up, back = ((np.asarray(points) - view.xpos) @ view.xmat.reshape(3, 3)).T
    focal_length = 0.5 * height / np.tan(0.5 * np.deg2rad(model.camera(camera).fovy[0]))
    return np.stack([0.5 * width - focal_length * right / back, 0.5 * height + focal_length * up / back], axis=-1)


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _open_gl_context(width: int, height: int) -> Any:
    backend = choose_backend()
    if backend is None:
        raise SimulationError(f"expected a library to draw with, got neither EGL nor OSMesa; {_WHAT_TO_DO}")
    module = f"mujoco.{_ALIASES.get(backend, backend)}"
    # Mesa's software renderer and triton, which torch's optimisers load, each bring an LLVM of their own. Loaded after
    # Mesa, triton crashes the process; before it, both work.
    with suppress(ImportError):
        importlib.import_module("triton")
    try:
        return importlib.import_module(module).GLContext(width, height)
    except Exception as error:  # PyOpenGL and the drivers raise whatever they like
        raise SimulationError(
            f"expected an OpenGL context from the backend MUJOCO_GL={backend}, got {error!r}; {_WHAT_TO_DO}"
        ) from error
