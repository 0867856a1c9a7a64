"""Checks of robomimic's tasks that run where robomimic is installed: ``python -P robomimic_checks.py FOLDER`` prints results.

Each function ``check_…`` is one; test_robomimic.py runs them in an environment of its own, and says which failed.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

import flowchunk.envs
from flowchunk.cli.main import main
from flowchunk.datasets.errors import FlowchunkError
from flowchunk.datasets.formats import open_dataset
from flowchunk.datasets.rotations import convert_rotation
from flowchunk.envs import check_task_env
from flowchunk.envs.tasks.robomimic_expert import RobomimicExpert
from flowchunk.envs.tasks.robomimic_import import make_robosuite

MAKE: Any = partial(gymnasium.make, "flowchunk/Robomimic-v1")
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
LIFT, CAN = FOLDER / "lift.hdf5", FOLDER / "can.hdf5"
TINY = ["network.width=16", "network.blocks=1", "training.steps=2", "training.batch_size=8", "evaluation.episodes=0"]


def refuses(message: str, call: Any) -> None:
    """The call raises an error of flowchunk with the message."""
    raised = ""
    try:
        call()
    except FlowchunkError as error:
        raised = str(error)
    assert message in raised, raised or f"nothing was raised, instead of {message!r}"


def global_numbers() -> np.ndarray:
    """The state of NumPy's global generator."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return np.array(state[1])


def episode(env: Any, seed: int, actions: np.ndarray) -> list[np.ndarray]:
    """All that is observed in an episode, and its scores."""
    observation, info = env.reset(seed=seed)
    found = [*observation.values(), np.array(info["score"])]
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        found += [*observation.values(), np.array([reward, info["score"]])]
    return found


def check_the_contract_is_kept() -> None:
    for options in (
        {"name": "lift"},
        {"name": "can"},
        {"name": "square"},
        {"name": "lift", "action": "absolute"},
        {"name": "lift", "action": "absolute", "rotation": "rotation_6d"},
    ):
        check_task_env(partial(MAKE, **options))


def check_episodes_depend_on_their_seed_alone() -> None:
    """Bit for bit, whatever ran before in this process, beside it, or in NumPy's global random numbers."""
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    for name in ("lift", "can"):
        alone, used, beside = MAKE(name=name), MAKE(name=name), MAKE(name=name)
        expected = episode(alone, 3, actions)
        for seed in (1, 2):
            episode(used, seed, actions[::-1])
        np.random.seed(7)  # noqa: NPY002
        before = global_numbers()
        used.reset(seed=3)
        beside.reset(seed=9)
        beside.step(actions[0])
        got = episode(used, 3, actions)
        assert all(np.array_equal(one, other) for one, other in zip(expected, got, strict=True)), name
        assert np.array_equal(before, global_numbers()), "NumPy's global state was changed"
        assert not np.array_equal(expected[0], episode(used, 4, actions)[0]), "the seed has no effect"
        for env in (alone, used, beside):
            env.close()


def check_score_and_success_are_robosuites() -> None:
    env: Any = MAKE(name="lift")
    expert, inner = RobomimicExpert(np.random.default_rng(0)), env.unwrapped
    _, info = env.reset(seed=0)
    best = info["score"]
    assert 0 <= best < 0.5
    assert not info["is_success"]
    expert.reset(inner)
    for _ in range(100):
        _, reward, terminated, _, info = env.step(expert.act(inner))
        best = max(best, reward)
        assert info["is_success"] == terminated == bool(inner.inner._check_success())
        assert info["score"] == (1.0 if terminated else best)
        if terminated:
            break
    assert terminated
    assert info["score"] == 1


def check_experts_succeed() -> None:
    for name, options, episodes in (("lift", {}, 6), ("can", {}, 4), ("can", {"action": "absolute"}, 2)):
        env: Any = MAKE(name=name, **options)
        expert, outcomes = RobomimicExpert(np.random.default_rng(0)), []
        for seed in range(episodes):
            env.reset(seed=seed)
            expert.reset(env.unwrapped)
            is_over = False
            while not is_over:
                _, _, terminated, truncated, info = env.step(expert.act(env.unwrapped))
                is_over = terminated or truncated
            outcomes.append(info["is_success"])
        assert all(outcomes), (name, outcomes)
        env.close()
    square: Any = MAKE(name="square")
    square.reset(seed=0)
    refuses("knows Lift and PickPlaceCan, but not NutAssemblySquare", lambda: expert.reset(square.unwrapped))


def check_both_rotations_are_the_same_pose() -> None:
    """And holding the pose keeps the end effector where it is."""
    vectors: Any = MAKE(name="lift", action="absolute")
    sixes: Any = MAKE(name="lift", action="absolute", rotation="rotation_6d")
    observed = [env.reset(seed=1)[0] for env in (vectors, sixes)]
    held = [env.get_wrapper_attr("hold_action")() for env in (vectors, sixes)]
    np.testing.assert_allclose(convert_rotation(held[1][3:9], "rotation_6d", "axis_angle"), held[0][3:6], atol=1e-6)
    starts = [one["robot0_eef_pos"] for one in observed]
    for _ in range(10):
        observed = [env.step(action)[0] for env, action in zip((vectors, sixes), held, strict=True)]
    np.testing.assert_allclose(observed[0]["object"], observed[1]["object"], atol=1e-5)
    np.testing.assert_allclose(observed[0]["robot0_eef_pos"], starts[0], atol=0.01)
    flat = held[1].copy()
    flat[3:9] = 0
    refuses("expected a rotation in action[3:9]", lambda: sixes.step(flat))


def check_images_are_upright_and_of_their_size() -> None:
    size = (48, 64)
    env: Any = MAKE(
        name="lift",
        observation="image",
        cameras=["agentview"],
        image_size=size,
        render_mode="rgb_array",
        render_size=size,
    )
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"agentview_image", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"}
    image = observation["agentview_image"]
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert np.array_equal(image, env.render())
    x, y = env.get_wrapper_attr("chunk_to_pixels")(np.zeros((1, 7)))[0]
    assert 0 < x < size[1]
    assert 0 < y < size[0] / 2, "the hand starts above the table, in the upper half"
    red = image[..., 0].astype(int) - image[..., 1]
    assert np.argwhere(red == red.max())[0][0] > y, "the red cube is below the hand"
    env.close()


def check_robomimic_reads_what_is_collected() -> None:
    with h5py.File(LIFT) as file:
        demos = list(file["data"])
        masks = [{name.decode() for name in file[f"mask/{part}"]} for part in ("train", "valid")]
        assert set.union(*masks) == set(demos)
        assert not set.intersection(*masks)
        lengths = [file["data"][demo].attrs["num_samples"] for demo in demos]
        assert file["data"].attrs["total"] == sum(lengths)
    from robomimic.utils import file_utils, obs_utils
    from robomimic.utils.dataset import SequenceDataset

    keys = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(keys), "rgb": []}})
    dataset = SequenceDataset(
        str(LIFT),
        obs_keys=keys,
        dataset_keys=("actions", "rewards", "dones"),
        seq_length=4,
        hdf5_cache_mode="all",
        filter_by_attribute="train",
    )
    assert len(dataset) == sum(length for demo, length in zip(demos, lengths, strict=True) if demo in masks[0])
    assert dataset[0]["actions"].shape == (4, 7)
    assert file_utils.get_env_metadata_from_dataset(str(LIFT))["env_name"] == "Lift"


def check_robomimic_restores_what_is_collected() -> None:
    """Its own environment, by the file's arguments, observes in the recorded states what was observed then."""
    for path in (LIFT, CAN):
        with h5py.File(path) as file:
            env = make_robosuite(json.loads(file["data"].attrs["env_args"]), cameras=(), is_rendered=False)
            demo = file["data/demo_1"]
            states, actions, rewards = demo["states"][:], demo["actions"][:], demo["rewards"][:]
            assert rewards.tolist() == [0.0] * (len(actions) - 1) + [1.0]
            env.reset_to({"model": demo.attrs["model_file"], "states": states[0]})
            for number, state in enumerate(states):
                observed = env.reset_to({"states": state})
                for key in demo["obs"]:  # which robosuite measures up to a physics step earlier
                    np.testing.assert_allclose(observed[key], demo[f"obs/{key}"][number], atol=0.01)
            env.step(actions[-1])
            assert env.is_success()["task"]
            assert np.array_equal(demo["next_obs/object"][:-1], demo["obs/object"][1:])


def check_replays_follow_the_recorded_states() -> None:
    for path in (LIFT, CAN):
        source, env = open_dataset(path), MAKE(path=path)
        with h5py.File(path) as file:
            demo = file["data/demo_1"]
            env.reset(seed=5, options=env.get_wrapper_attr("start_options")(source, 1))
            size, errors = env.unwrapped.data.qpos.size, []
            for state, action in zip(demo["states"], demo["actions"], strict=True):
                errors.append(np.abs(env.get_wrapper_attr("simulation_state")() - state)[1 : 1 + size].max())
                _, _, terminated, _, _ = env.step(action)
            assert max(errors[:20]) < 1e-4, errors  # 0.05 if the arm tends elsewhere
            assert terminated
            assert env.get_wrapper_attr("model_xml")() == demo.attrs["model_file"]
        env.close()


def check_replays_start_where_the_data_did() -> None:
    options = [f"output_dir={FOLDER / 'replay'}"]
    assert main(["data", "replay", str(LIFT), "task=robomimic/lift", *options]) == 0
    assert json.loads((FOLDER / "replay" / "replay.json").read_text())["success_rate"] == 1
    with h5py.File(LIFT) as file, h5py.File(FOLDER / "mixed.hdf5", "w") as mixed:
        file.copy("data", mixed)
        starts = [file[f"data/demo_{number}/states"][0] for number in range(len(file["data"]))]
        for number in range(len(starts)):
            mixed[f"data/demo_{number}/states"][0] = starts[(number + 1) % len(starts)]
    assert main(["data", "replay", str(FOLDER / "mixed.hdf5"), "task=robomimic/lift", *options]) == 0
    assert json.loads((FOLDER / "replay" / "replay.json").read_text())["success_rate"] < 0.8, "any start will do"
    assert main(["data", "replay", str(CAN), "task=robomimic/lift", *options]) == 1, "another task"
    env: Any = MAKE(name="lift")
    refuses("states: expected 32 numbers in Lift", lambda: env.reset(seed=0, options={"states": np.zeros(31)}))
    refuses("the model of the demonstration cannot be restored", lambda: _broken_model(env))
    refuses("options: expected states and model", lambda: env.reset(options={"state": 1}))


def _broken_model(env: Any) -> None:
    env.reset(seed=0, options={"states": np.zeros(32), "model": "<mujoco/>"})


def check_data_of_others_are_refused_or_warned_about() -> None:
    with h5py.File(LIFT) as file:
        stored = json.loads(file["data"].attrs["env_args"])

    def copy(name: str, attribute: str | None) -> Path:
        with h5py.File(LIFT) as file, h5py.File(FOLDER / name, "w") as changed:
            file.copy("data", changed)
            del changed["data"].attrs["flowchunk"], changed["data"].attrs["env_args"]
            if attribute is not None:
                changed["data"].attrs["env_args"] = attribute
        return FOLDER / name

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("flowchunk.envs.tasks.robomimic").addHandler(handler)
    older = copy("older.hdf5", json.dumps({**stored, "env_version": "1.2.0"}))
    for _ in range(2):
        MAKE(name="lift", path=older).close()
    assert len(messages) == 1, messages
    assert "recorded with robosuite 1.2.0, but 1.4.1 is installed" in messages[0]
    env: Any = MAKE(name="lift")
    check = env.get_wrapper_attr("check_recordings")
    check(open_dataset(older))
    refuses("has no attribute env_args", lambda: check(open_dataset(copy("none.hdf5", None))))
    refuses("has no attribute env_args", lambda: MAKE(name="lift", path=FOLDER / "none.hdf5"))
    can = copy("can-args.hdf5", json.dumps({**stored, "env_name": "PickPlaceCan"}))
    refuses(
        "recorded in PickPlaceCan, but the environment is Lift; use task=robomimic/can",
        lambda: check(open_dataset(can)),
    )
    absolute: Any = MAKE(name="lift", action="absolute")
    refuses(
        "not as this environment is controlled",
        lambda: absolute.get_wrapper_attr("check_recordings")(open_dataset(older)),
    )
    refuses("stores no states", lambda: env.get_wrapper_attr("start_options")(_without_states(), 0))
    unknown = copy("unknown.hdf5", json.dumps({**stored, "env_name": "Flying"}))
    refuses("robosuite cannot make Flying", lambda: MAKE(path=unknown))


def _without_states() -> Any:
    with h5py.File(FOLDER / "no-states.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 7))
    return open_dataset(FOLDER / "no-states.hdf5")


def check_bad_arguments_are_refused() -> None:
    refuses("name: expected one of", lambda: MAKE(name="fly"))
    refuses("observation: expected one of", lambda: MAKE(observation="sound"))
    refuses("image_size: expected [height, width]", lambda: MAKE(image_size=[0, 3]))
    refuses("rotation=rotation_6d is of absolute actions", lambda: MAKE(rotation="rotation_6d"))
    env: Any = MAKE(name="lift")
    env.reset(seed=0)
    refuses("expected render_mode='rgb_array'", lambda: env.unwrapped.render())
    refuses("a chunk of shape (H, 7)", lambda: env.unwrapped.chunk_to_pixels(np.zeros((2, 3))))


def check_a_policy_is_trained_and_evaluated_in_processes() -> None:
    run = FOLDER / "run"
    assert main(["train", "task=robomimic/lift", f"dataset.path={LIFT}", f"output_dir={run}", *TINY]) == 0
    assert main(["eval", str(run), "episodes=2", "num_envs=2", "processes=2", "video=0", "env.name=lift"]) == 0
    report = json.loads((run / "eval" / "eval.json").read_text())
    assert [one["steps"] for one in report["episodes"]] == [400, 400]


def results() -> dict[str, str]:
    """For each check "ok", or the traceback."""
    for path, count in ((LIFT, 10), (CAN, 2)):
        assert main(["collect", f"task=robomimic/{path.stem}", f"episodes={count}", f"output_dir={path}"]) == 0
    found = {}
    checks = {
        name: check for name, check in globals().items() if name.startswith("check_") and check is not check_task_env
    }
    for name, check in checks.items():
        try:
            check()
            found[name] = "ok"
        except Exception:
            found[name] = traceback.format_exc()
        print(name, found[name], file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    assert flowchunk.envs
    print(json.dumps(results()))
