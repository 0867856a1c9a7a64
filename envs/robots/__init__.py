"""Robots that the control loop drives: simulated ones, Gymnasium environments, and drivers of real hardware."""

from typing import TYPE_CHECKING

from flowchunk.datasets.lazy import lazy_exports

if TYPE_CHECKING:
    from flowchunk.envs.robots.checks import check_robot
    from flowchunk.envs.robots.gym_robot import GymRobot
    from flowchunk.envs.robots.holding import holding_action
    from flowchunk.envs.robots.lerobot_robot import LeRobotRobot
    from flowchunk.envs.robots.making import make_robot
    from flowchunk.envs.robots.matching import SpecMatch
    from flowchunk.envs.robots.robot import Reading, ResettableRobot, Robot
    from flowchunk.envs.robots.simulated import SimulatedRobot
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "checks": ["check_robot"],
            "gym_robot": ["GymRobot"],
            "holding": ["holding_action"],
            "lerobot_robot": ["LeRobotRobot"],
            "making": ["make_robot"],
            "matching": ["SpecMatch"],
            "robot": ["Reading", "ResettableRobot", "Robot"],
            "simulated": ["SimulatedRobot"],
        },
    )

__all__ = [
    "GymRobot",
    "LeRobotRobot",
    "Reading",
    "ResettableRobot",
    "Robot",
    "SimulatedRobot",
    "SpecMatch",
    "check_robot",
    "holding_action",
    "make_robot",
]
