"""Rendering without a display: the backend is chosen, contexts are shared and released, and nothing leaks."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
from gymnasium.vector import SyncVectorEnv

from flowchunk.datasets.errors import SimulationError
from flowchunk.envs import rendering
from flowchunk.envs.rendering import OffscreenRenderer
from flowchunk.envs.tasks.pick_place import PickPlace
from flowchunk.envs.tasks.pusht import PushT

CAMERAS = ("front", "wrist")


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """The open OpenGL contexts, none at first; skips the test if none can be created."""
    contexts: dict[Any, Any] = {}
    monkeypatch.setattr(rendering._Canvas, "_open", contexts)
    try:
        PickPlace(observation="image").close()
    except SimulationError as error:
        pytest.skip(f"rendering is not possible here: {error}")
    return contexts


def renderer_of(env: PickPlace, size: int = 48) -> OffscreenRenderer:
    return OffscreenRenderer(env.model, height=size, width=size)


# Contexts


def test_one_renderer_renders_every_camera(contexts: dict[Any, Any]) -> None:
    env = PickPlace()
    env.reset(seed=0)
    renderer = renderer_of(env)
    front, wrist, again = (renderer.render(env.data, camera=name) for name in ("front", "wrist", "front"))
    np.testing.assert_array_equal(front, again)
    assert np.abs(front.astype(int) - wrist).mean() > 20
    assert len(contexts) == 1
    renderer.close()


def test_renderers_of_equal_models_share_a_context_and_the_last_one_frees_it(contexts: dict[Any, Any]) -> None:
    environments = [PickPlace() for _ in range(3)]
    for number, env in enumerate(environments):
        env.reset(seed=number)
    single = renderer_of(environments[1])
    expected = {name: single.render(environments[1].data, camera=name) for name in CAMERAS}
    single.close()
    assert contexts == {}

    renderers = [renderer_of(env) for env in environments]
    assert len(contexts) == 1
    for name in CAMERAS:
        images = [renderer.render(env.data, camera=name) for renderer, env in zip(renderers, environments, strict=True)]
        np.testing.assert_array_equal(images[1], expected[name])
        assert not np.array_equal(images[0], images[1])
    renderers[0].close()
    renderers[2].close()
    assert len(contexts) == 1
    np.testing.assert_array_equal(renderers[1].render(environments[1].data, camera="front"), expected["front"])
    renderers[1].close()
    assert contexts == {}


def test_other_sizes_and_other_models_have_separate_contexts(contexts: dict[Any, Any]) -> None:
    env, painted = PickPlace(), PickPlace()
    painted.model.geom("cube").rgba[:] = (0, 0, 1, 1)
    renderers = [renderer_of(env), renderer_of(env, 64), renderer_of(painted)]
    assert len(contexts) == 3
    env.reset(seed=0)
    assert renderers[0].render(env.data, camera="front").shape == (48, 48, 3)
    assert renderers[1].render(env.data, camera="front").shape == (64, 64, 3)
    for renderer in renderers:
        renderer.close()
    assert contexts == {}


def test_a_closed_renderer_is_an_error(contexts: dict[Any, Any]) -> None:
    env = PickPlace(observation="image")
    env.reset(seed=0)
    env.close()
    env.close()
    assert contexts == {}
    with pytest.raises(SimulationError, match="closed"):
        env.reset(seed=0)


def test_many_in_parallel_render_the_same_as_a_single_one(contexts: dict[Any, Any]) -> None:
    parallel = SyncVectorEnv([lambda: PickPlace(observation="image")] * 50)
    assert len(contexts) == 1
    observations, _ = parallel.reset(seed=3)
    parallel.close()
    env = PickPlace(observation="image")
    for number in (0, 7, 49):
        expected, _ = env.reset(seed=3 + number)
        for key, value in expected.items():
            np.testing.assert_array_equal(observations[key][number], value)
    env.close()


# Forks and threads


IN_A_FORK = """if True:
    import os, sys, warnings
    from flowchunk.datasets.errors import SimulationError
    from flowchunk.envs.tasks.pick_place import PickPlace
    warnings.simplefilter("ignore")  # newer Pythons warn of any fork with threads
    open_before = PickPlace(observation="image")
    if {is_closed}:
        open_before.close()
    child = os.fork()
    if child == 0:
        for render in (lambda: PickPlace(observation="image"), lambda: open_before.reset(seed=0)):
            try:
                render()
            except SimulationError as error:
                print(error, flush=True)
        open_before.close()
        os._exit(0)  # as multiprocessing ends a forked process: MuJoCo's cleanup of EGL would hang
    _, status = os.waitpid(child, 0)
    print("the child ended with", status)
    if not {is_closed}:
        print("the parent renders", open_before.reset(seed=0)[0]["front_image"].std() > 5)
        open_before.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_forked_process_is_an_error_that_advises_spawn_and_does_not_hang(
    is_closed: bool, contexts: dict[Any, Any]
) -> None:
    program = IN_A_FORK.format(is_closed=is_closed)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("context='spawn'") == (1 if is_closed else 2)
    assert "the child ended with 0" in done.stdout
    assert ("the parent renders True" in done.stdout) is not is_closed
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_gymnasiums_own_vector_of_forked_environments_is_an_error(contexts: dict[Any, Any]) -> None:
    program = """if True:
        import gymnasium, flowchunk.envs, warnings
        warnings.simplefilter("ignore")
        more = {"num_envs": 2, "vectorization_mode": "async", "observation": "image"}
        gymnasium.make_vec("flowchunk/PickPlace-v1", **more, vector_kwargs={"context": "fork"})
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "create environments in spawned processes" in done.stderr


def test_closing_in_another_thread_is_an_error_and_can_be_repeated(contexts: dict[Any, Any]) -> None:
    env = PickPlace(observation="image")
    env.reset(seed=0)
    outcome: list[object] = []

    def close() -> None:
        try:
            env.close()
        except SimulationError as error:
            outcome.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert not outcome or "in the thread that created it" in str(outcome[0]), "some drivers allow it"
    env.close()
    assert contexts == {}


# Leaks


def growth(action: Callable[[], None], *, times: int) -> tuple[float, int]:
    """By how many megabytes and file descriptors this process grows in ``times`` repetitions, after a warm-up."""
    process = psutil.Process()

    def used() -> tuple[float, int]:
        gc.collect()
        return process.memory_info().rss / 1e6, process.num_fds()

    for _ in range(times // 5):
        action()
    megabytes, descriptors = used()
    for _ in range(times):
        action()
    return used()[0] - megabytes, used()[1] - descriptors


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
@pytest.mark.parametrize("task", [PushT, PickPlace])
def test_a_thousand_resets_leak_nothing(task: Any, contexts: dict[Any, Any]) -> None:
    size = 96 if task is PushT else (96, 96)
    env = task(observation="image", render_mode="rgb_array", render_size=size)

    def start() -> None:
        env.reset(seed=0)
        env.render()

    megabytes, descriptors = growth(start, times=1000)
    env.close()
    assert megabytes < 10
    assert descriptors == 0


@pytest.mark.skipif(sys.platform == "win32", reason="counts file descriptors")
def test_making_and_closing_a_hundred_leaks_nothing(contexts: dict[Any, Any]) -> None:
    def create_and_close() -> None:
        env = PickPlace(observation="image")
        env.reset(seed=0)
        env.close()
        assert contexts == {}

    megabytes, descriptors = growth(create_and_close, times=100)
    assert megabytes < 10
    assert descriptors == 0


# Backends


def render_explicitly() -> None:
    PickPlace(render_mode="rgb_array").render()


def render_by_observing() -> None:
    PickPlace(observation="image")


@pytest.mark.parametrize("render", [render_explicitly, render_by_observing])
def test_without_opengl_libraries_the_error_names_packages(
    render: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(library: str) -> None:
        raise OSError(library)

    monkeypatch.setattr(rendering._Canvas, "_open", {})
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering.sys, "platform", "linux")  # type: ignore[attr-defined]
    monkeypatch.setattr(rendering.ctypes, "CDLL", refuse)  # type: ignore[attr-defined]
    assert rendering.choose_backend() is None
    with pytest.raises(SimulationError, match=r"libegl1 libgl1.*libosmesa6.*observation='state'"):
        render()


@pytest.mark.parametrize(("has", "chosen"), [("libEGL.so.1", "egl"), ("libOSMesa.so.8", "osmesa")])
def test_the_first_library_that_loads_is_chosen(has: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(library: str) -> None:
        if library != has:
            raise OSError(library)

    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(rendering.sys, "platform", "linux")  # type: ignore[attr-defined]
    monkeypatch.setattr(rendering.ctypes, "CDLL", load)  # type: ignore[attr-defined]
    assert rendering.choose_backend() == os.environ["MUJOCO_GL"] == chosen


@pytest.mark.skipif(sys.platform != "linux", reason="unsets the display of X11")
def test_a_backend_that_does_not_work_is_an_error_and_no_crash() -> None:
    program = """if True:
        from flowchunk.datasets.errors import SimulationError
        from flowchunk.envs.tasks.pick_place import PickPlace
        env = PickPlace(render_mode="rgb_array")
        env.reset(seed=0)
        for render in (env.render, lambda: PickPlace(observation="image")):
            try:
                render()
            except SimulationError as error:
                print("SimulationError:", error)
        env.step(env.action_space.sample())
        env.close()
        print("still alive")
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"MUJOCO_GL": "glfw"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("libegl1 libgl1") == 2
    assert "still alive" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("imported_first", ["flowchunk.envs", "mujoco", "triton"])
def test_osmesa_renders_too_whatever_is_imported_first(imported_first: str) -> None:
    if not any(map(rendering._can_load, rendering._LIBRARIES["osmesa"])):
        pytest.skip("needs OSMesa")
    pytest.importorskip(imported_first)
    program = f"""if True:
        import {imported_first}
        import flowchunk.envs
        from flowchunk.envs.tasks.pick_place import PickPlace
        env = PickPlace(observation="image")
        print("rendered", env.reset(seed=0)[0]["front_image"].std() > 5)
        env.close()
        if {imported_first != "mujoco"}:
            try:
                import triton
            except ImportError:
                pass
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "rendered True" in done.stdout
