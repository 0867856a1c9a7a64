"""Offscreen rendering of a MuJoCo scene without a display: EGL, else OSMesa, else an error that says what to install.

MuJoCo chooses its rendering backend when it is first imported, which may be long before the first image is rendered. So the
OpenGL context is created here, when it is first needed, independently of MuJoCo's choice.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Hashable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs.mesa_workaround import load_triton_before_mesa
from flowchunk.envs.mujoco_import import mujoco

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
    "variable MUJOCO_GL unset, or work without images (render_mode=None, observation='state')"
)
_NEAREST = 0.01  # m in front of a camera, the closest points to project


def choose_backend() -> str | None:
    """The OpenGL backend for rendering, also stored in the environment variable MUJOCO_GL.

    Returns MUJOCO_GL if the user has set it; else "egl" or "osmesa", the first whose library can be loaded; else None. On
    macOS and Windows, returns the system's native backend.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip() or _NATIVE.get(sys.platform)
    if chosen is None:
        chosen = next((name for name, libraries in _LIBRARIES.items() if any(map(_can_load, libraries))), None)
    if chosen is not None:
        os.environ["MUJOCO_GL"] = chosen
    return chosen


class OffscreenRenderer:
    """Renders a model's cameras into arrays; renderers of equal models and sizes share one OpenGL context.

    height, width: of the images in pixels. A renderer must be used in the thread that created it. Raises SimulationError if
    no OpenGL context can be created.
    """

    def __init__(self, model: mujoco.MjModel, *, height: int, width: int) -> None:
        self._model = model
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._options = mujoco.MjvOption()
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 100)
        # Without these two, a software renderer is up to a hundred times faster.
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._image = np.empty((height, width, 3), dtype=np.uint8)
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._canvas: _Canvas | None = _Canvas.shared_by(model)

    def render(self, data: mujoco.MjData, *, camera: str) -> NDArray[np.uint8]:
        """A camera's image of the state in ``data``: (height, width, 3), uint8, top row first.

        Moving cameras are where ``mj_camlight`` last placed them. Raises SimulationError after ``close``.
        """
        if self._canvas is None:
            raise SimulationError("expected an open renderer, got a closed one; create another environment")
        self._camera.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        context = self._canvas.make_current()
        mujoco.mjr_render(self._viewport, self._scene, context)
        mujoco.mjr_readPixels(self._image, None, self._viewport, context)
        return self._image[::-1].copy()

    def close(self) -> None:
        """Release the context, which the last renderer that shares it frees; may be called more than once."""
        if self._canvas is not None:
            self._canvas.release()
            self._canvas = None


class _Canvas:
    """An OpenGL context with the resources of a model, shared by all renderers of equal models in one thread.

    A separate context per environment would cost 0.1 s and 12 MB each, and switching between them slows rendering by a
    quarter. OpenGL does not survive a fork: in a forked child, the driver waits for threads that exist only in the parent.
    """

    _open: ClassVar[dict[Hashable, _Canvas]] = {}
    _process: ClassVar[int | None] = None
    """The process that opened the first context."""

    def __init__(self, model: mujoco.MjModel, key: Hashable) -> None:
        self._key = key
        self._users = 0
        _Canvas._process = os.getpid()
        self._gl: Any = _open_gl_context(model.vis.global_.offwidth, model.vis.global_.offheight)
        try:
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        except Exception as error:
            self._gl.free()
            raise SimulationError(f"expected to render into an OpenGL context, got {error!r}; {_WHAT_TO_DO}") from error
        atexit.register(self._free)  # after MuJoCo has closed its display at exit, contexts can no longer be freed

    @classmethod
    def shared_by(cls, model: mujoco.MjModel) -> _Canvas:
        """This thread's canvas for models that equal ``model`` byte for byte, including the image size.

        Raises SimulationError in a process that was forked from one that had rendered.
        """
        cls._require_no_fork()
        content = np.empty(mujoco.mj_sizeModel(model), dtype=np.uint8)
        mujoco.mj_saveModel(model, None, content)
        key = (threading.get_ident(), content.tobytes())
        canvas = cls._open.get(key) or cls(model, key)
        cls._open[key] = canvas
        canvas._users += 1
        return canvas

    def make_current(self) -> mujoco.MjrContext:
        """Make MuJoCo render here. Raises SimulationError in a thread or process other than the one that opened it."""
        self._require_no_fork()
        try:
            self._gl.make_current()
        except Exception as error:  # PyOpenGL and the drivers raise exceptions of any type
            raise SimulationError(
                f"expected a free OpenGL context, got {error!r}; render and close an environment in the thread that "
                "created it"
            ) from error
        return self._context

    def release(self) -> None:
        """Unregister one renderer. Raises SimulationError, and changes nothing, if the last one cannot free the context."""
        if self._users == 1:
            self._free()
            del self._open[self._key]
            atexit.unregister(self._free)
        self._users -= 1

    def _free(self) -> None:
        if self._is_forked():
            return  # the context belongs to the parent
        self.make_current()
        self._context.free()
        self._gl.free()

    @classmethod
    def _is_forked(cls) -> bool:
        return cls._process not in (None, os.getpid())

    @classmethod
    def _require_no_fork(cls) -> None:
        if cls._is_forked():
            raise SimulationError(
                "expected a process that was not forked after rendering, got one whose parent had rendered; create "
                "environments in spawned processes, as AsyncVectorEnv does with context='spawn'"
            )


def project_to_pixels(
    model: mujoco.MjModel, data: mujoco.MjData, points: ArrayLike, *, camera: str, height: int, width: int
) -> NDArray[np.float64]:
    """Project points of the world into a camera's image (pinhole projection).

    points: (N, 3) in meters. Returns (N, 2) in pixels, x to the right and y down from the top left corner; coordinates may
    lie outside the image, and are NaN for points that are not in front of the camera.
    """
    view = data.camera(camera)
    right, up, back = ((np.asarray(points) - view.xpos) @ view.xmat.reshape(3, 3)).T
    back = np.where(back < -_NEAREST, back, np.nan)
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
        raise SimulationError(f"expected an OpenGL library, got neither EGL nor OSMesa; {_WHAT_TO_DO}")
    module = f"mujoco.{_ALIASES.get(backend, backend)}"
    load_triton_before_mesa()
    try:
        gl = importlib.import_module(module).GLContext(width, height)
        if not getattr(gl, "_context", True):  # GLFW only warns, and MuJoCo exits if it fails twice
            raise RuntimeError("no context, and no reason given")
        return gl
    except Exception as error:  # PyOpenGL and the drivers raise exceptions of any type
        raise SimulationError(
            f"expected an OpenGL context from the backend MUJOCO_GL={backend}, got {error!r}; {_WHAT_TO_DO}"
        ) from error
