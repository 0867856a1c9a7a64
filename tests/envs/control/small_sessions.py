"""Sessions of a small policy and the simulated robot of Push-T, and what the robot wrote down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowchunk.datasets.errors import ConfigurationError
from flowchunk.envs.control.inference import InferenceOptions
from flowchunk.envs.control.loop import ControlLoop, EpisodeEnd, Recording
from flowchunk.envs.control.messages import Tick
from flowchunk.envs.control.safety import PolicyFacts, SafetyOptions
from flowchunk.envs.control.session import ControlSession
from flowchunk.envs.control.watchdog import WatchdogOptions
from flowchunk.envs.robots.simulated import SimulatedRobot
from flowchunk.envs.tasks.pusht import ACTION_SPEC, OBSERVATION_SPECS
from flowchunk.policy.action_limits import ActionLimits
from flowchunk.policy.chunk_policy import ChunkPolicy
from flowchunk.policy.normalizer import Normalizer, Scaling
from flowchunk.policy.policy_config import PolicyConfig
from flowchunk.policy.sampling import SamplingOptions
from tests.envs.control.faults import read_log

PUSHT = "flowchunk/PushT-v1"
PERIOD, RATE = 0.1, 50.0  # s, and commands per second
BUSY = 3  # sessions in a row that find the machine, which other tests share, too busy for the rate
VELOCITY, RAMP = 400.0, 0.6  # px/s, and the fraction of it for the approach, which lasts less than 2 s


def save_policy(path: Path, *, limits: bool = True, **config: Any) -> Path:
    """An untrained policy of Push-T, whose chunks are noise around the middle of the plane."""
    observation_spec = OBSERVATION_SPECS["state"]
    plane = np.array([[0.0, 0, 0, 0, -np.pi], [512.0, 512, 512, 512, np.pi]])
    options = {"network": "mlp", "network_options": {"width": 16, "blocks": 1}, "horizon": 8, "n_action_steps": 4}
    policy = ChunkPolicy(
        PolicyConfig(**{**options, "prefix_max": 2, **config}, sampling=SamplingOptions(noise_scale=0.3)),
        observation_spec,
        ACTION_SPEC,
        Normalizer(
            {
                "state": Scaling.fit("min_max", [plane], identity=(4,)),
                "action": Scaling.fit("min_max", [np.array([[0.0, 0.0], [512.0, 512.0]])]),
            }
        ),
        action_limits=ActionLimits(np.full(2, VELOCITY), np.full(2, 1e6)) if limits else None,
    )
    policy.save(path, training={"task": "pusht_state", "env_id": PUSHT, "env": {}})
    return path


class Driven:
    """A session that is ready, its loop, and the robot's log."""

    def __init__(self, session: ControlSession, log: Path) -> None:
        self.session, self._log = session, log
        self.loop: ControlLoop = session.loop(session.preflight(), check=self._check)
        self._at: dict[int, Callable[[], str | None]] = {}
        self._steps = 0

    def run(
        self, *, seconds: float = 10.0, recording: Recording | None = None, **at: Callable[[], str | None]
    ) -> EpisodeEnd:
        """An episode. at: what is done at control steps, such as ``step_5=…``; a text ends the episode."""
        self._steps = 0
        self._at = {int(name.removeprefix("step_")): act for name, act in at.items()}
        return self.loop.run_episode(seed=3, seconds=seconds, recording=recording)

    def log(self, *events: str, after: float = -np.inf) -> list[dict[str, Any]]:
        return [line for line in read_log(self._log, *events) if line["time"] > after]

    def held_after(self, moment: float) -> float:
        """Seconds until the robot held for good; all control steps since then have held it at one place."""
        time.sleep(3 * PERIOD)
        moving = [line["time"] for line in self.log("step") if line["holding"] is None]
        held = self.log("step", after=max(*moving, moment))
        assert held, "it still moves"
        assert len({tuple(line["target"]) for line in held}) == 1
        return max(0.0, max(moving) - moment)

    def _check(self, tick: Tick) -> str | None:
        self._steps += 1
        return self._at.get(self._steps, lambda: None)()


@contextmanager
def driven(
    folder: Path, *, robot: Mapping[str, Any] | None = None, inference: Mapping[str, Any] | None = None, **changes: Any
) -> Iterator[Driven]:
    """A session with a new policy. robot: options of the simulated robot. changes: of the policy's execution."""
    checkpoint = save_policy(folder / "policy")
    facts, safety = PolicyFacts.of_checkpoint(checkpoint), SafetyOptions(ramp=RAMP)
    watchdog = WatchdogOptions(
        observation_spec=facts.observation_spec,
        action_spec=facts.action_spec,
        rate=RATE,
        limits=safety.motion_limits(facts.action_spec, facts.action_limits),
        observed=facts.observed,
        margin=safety.margin,
        sensor_timeout=safety.timeout(facts.action_spec.control_hz),
        ramp=safety.ramp,
        stop_file=folder / "STOP",
    )
    options = InferenceOptions(str(checkpoint), **(inference or {}))
    for attempt in range(BUSY):
        log = folder / f"robot_{attempt}.log"
        make_robot = partial(SimulatedRobot, PUSHT, log=str(log), **(robot or {}))
        with ExitStack() as stack:
            session = stack.enter_context(ControlSession(make_robot, options, watchdog, changes))
            try:
                ready = Driven(session, log)
            except ConfigurationError as error:
                if "commands per second are possible" not in str(error) or attempt == BUSY - 1:
                    raise
                continue
            yield ready
            return
