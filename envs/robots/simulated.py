"""A simulated robot that moves in real time in a process of its own, as hardware does: it goes on if its controller fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowchunk.datasets.errors import ConfigurationError, RobotError
from flowchunk.datasets.specs import ActionSpec, ObservationSpec
from flowchunk.envs.robots.robot import Reading
from flowchunk.envs.robots.server_process import ServerProcess, open_connection
from flowchunk.envs.robots.simulated_link import SimulatedLink
from flowchunk.envs.robots.simulated_options import SimulatedOptions
from flowchunk.envs.robots.wire import Message

Result = TypeVar("Result")
LINGER = 10.0  # s without a controller, after which a robot that was started here ends


class SimulatedRobot:
    """A task of this package, or any Gymnasium task with specifications, as a robot.

    env_id, env: the task and its options. command_hz: how often commands are sent. address: the socket of a robot that
    already runs, such as one of ``python -m flowchunk.envs.robots.simulated_server``; without it, ``connect`` starts a
    process, which ends with ``close`` or after 10 s without a controller. The other options are those of
    ``SimulatedOptions``, and belong to the process: seed, sensing_delay, command_delay, jitter, command_timeout (seconds),
    drop (a probability) and log (a path). Holding and resetting are neither delayed nor lost.

    The specifications are known once it is connected. Raises ConfigurationError for options that cannot be used.
    """

    def __init__(
        self,
        env_id: str,
        env: Mapping[str, Any] | None = None,
        *,
        command_hz: float = 50.0,
        address: str | Path | None = None,
        seed: int = 0,
        sensing_delay: float = 0.0,
        command_delay: float = 0.0,
        jitter: float = 0.0,
        drop: float = 0.0,
        command_timeout: float | None = None,
        log: str | Path | None = None,
    ) -> None:
        self._options = SimulatedOptions(
            env_id=env_id,
            env=dict(env or {}),
            seed=seed,
            sensing_delay=sensing_delay,
            command_delay=command_delay,
            jitter=jitter,
            drop=drop,
            command_timeout=command_timeout,
            log=None if log is None else str(Path(log).absolute()),
            linger=LINGER,
        )
        if address is not None and self._options != SimulatedOptions(env_id=env_id, linger=LINGER):
            raise ConfigurationError(
                f"address={address}: the robot there already has its options; give only env_id, command_hz and address"
            )
        if not command_hz > 0:
            raise ConfigurationError(f"command_hz: expected a rate above 0 Hz, got {command_hz}")
        self.command_hz = float(command_hz)
        self.name = f"simulated:{env_id}:{address or uuid.uuid4().hex[:8]}"
        self._given_address = None if address is None else Path(address)
        self._server: ServerProcess | None = None
        self._link: SimulatedLink | None = None

    @property
    def observation_spec(self) -> ObservationSpec:
        """What the task observes. Raises RobotError before ``connect``."""
        return self._connected().observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        """What the task's actions are; its ``control_hz`` is the rate of simulation. Raises RobotError before ``connect``."""
        return self._connected().action_spec

    @property
    def address(self) -> Path:
        """The socket's path, by which another controller can take over. Raises RobotError before ``connect``."""
        self._connected()
        address = self._given_address if self._server is None else self._server.address
        assert address is not None
        return address

    @property
    def server_pid(self) -> int:
        """The process that simulates the robot. Raises RobotError before ``connect``."""
        return self._connected().server_pid

    def connect(self) -> None:
        """Start the robot's process if it does not run, and connect; it holds still.

        Raises RobotError if it cannot be started or reached, simulates another task, or has another controller.
        """
        if self._link is not None:
            return
        if self._given_address is None and (self._server is None or not self._server.is_running()):
            self._server = ServerProcess(self._options)
        try:
            address = self._given_address if self._server is None else self._server.address
            assert address is not None
            self._link = SimulatedLink(open_connection(address), self._options.env_id)
            self._call(lambda link: link.wait_for_reading(0.0))
        except BaseException:
            self.close()
            raise

    def observe(self) -> Reading:
        """The newest reading, without waiting. Raises RobotError if the robot failed, or is silent (see SimulatedLink)."""
        return self._call(SimulatedLink.newest)

    def command(self, action: np.ndarray) -> None:
        """Send one action (D,). What cannot be used is reported, as a RobotError, by a later call."""
        self._call(lambda link: link.send(Message("command", {}, {"action": np.asarray(action, dtype=np.float64)})))

    def hold(self) -> np.ndarray:
        """Hold at once, and return the action (D,) that does it. Raises RobotError."""
        return self._call(lambda link: link.request("hold").arrays["action"])

    def reset(self, seed: int) -> None:
        """Start the episode of this seed, and hold; the next reading is of this episode. Raises RobotError."""

        def reset(link: SimulatedLink) -> None:
            link.wait_for_reading(link.request("reset", seed=int(seed)).fields["time"])

        self._call(reset)

    def outcome(self) -> Mapping[str, float | bool]:
        """``score`` and ``is_success`` of the episode as of the newest reading, without waiting. Raises RobotError."""
        return self._call(SimulatedLink.outcome)

    def close(self) -> None:
        """Disconnect, upon which the robot holds; end its process if it was started here. May be called more than once."""
        if self._link is not None:
            self._link.close(quit_server=self._server is not None)
            self._link = None
        if self._server is not None:
            self._server.close()
            self._server = None

    def _connected(self) -> SimulatedLink:
        if self._link is None:
            raise RobotError(f"{self.name} is not connected; call connect() first")
        return self._link

    def _call(self, use: Callable[[SimulatedLink], Result]) -> Result:
        """Use the connection; an error names the robot, and says what its process printed last if it has ended."""
        link = self._connected()
        try:
            return use(link)
        except RobotError as error:
            words = "" if self._server is None or self._server.is_running() else self._server.last_words
            raise RobotError(f"{self.name}: {error}{f' ({words})' if words else ''}") from error
