"""A simulated robot in a process of its own, which moves in real time whatever its controller does.

    python -m flowchunk.envs.robots.simulated_server ENV_ID --address PATH

It serves one controller at a time at a local socket. A control step takes place at once, at the beginning of its period, and
its observation is sent with the time at which it was made. The robot holds by itself if commands stop, and at once if the
connection of its controller closes.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import gymnasium

from flowchunk.datasets.errors import FlowchunkError, RobotError, SimulationError
from flowchunk.envs.robots.controller_connection import READING, ControllerConnection
from flowchunk.envs.robots.lossy_channel import LossyChannel
from flowchunk.envs.robots.simulated_options import SimulatedOptions
from flowchunk.envs.robots.simulated_task import EventLog, SimulatedTask
from flowchunk.envs.robots.wire import Message, encode, receive
from flowchunk.envs.simulation import environment_maker

HANDSHAKE_TIMEOUT = 2.0  # s
COMMANDS, SENSORS = 0, 1  # seeds of the two channels


class SimulatedServer:
    """The process's loop. env: made without a limit on its steps. address: of the socket, which must not be in use."""

    def __init__(self, env: gymnasium.Env[Any, Any], options: SimulatedOptions, address: Path) -> None:
        self._options, self._address = options, address
        self._log = EventLog(None if options.log is None else Path(options.log))
        self._task = SimulatedTask(
            env, command_timeout=options.command_timeout, channel=self._channel(COMMANDS, options.seed), log=self._log
        )
        self._resets: SimpleQueue[tuple[ControllerConnection, int, int]] = SimpleQueue()
        self._controller: ControllerConnection | None = None
        self._stopping = threading.Event()
        self._reset(options.seed)
        self._listener = _listen(address)

    def stop(self) -> None:
        """End ``run`` after the current control step."""
        self._stopping.set()

    def run(self) -> None:
        """Step in real time until ``stop``, or until there was no controller for ``linger`` seconds."""
        threading.Thread(target=self._accept, name="acceptor", daemon=True).start()
        deadline = attended = time.monotonic()
        num_late = 0
        try:
            while not self._stopping.is_set():
                deadline += self._task.period
                time.sleep(max(0.0, deadline - time.monotonic()))  # to an absolute time, of CLOCK_MONOTONIC
                now = time.monotonic()
                late = now - deadline
                if late > self._task.period / 2:  # after a stall it goes on from now, without steps in a burst
                    deadline, num_late = now, num_late + 1
                    self._log.write("late", late=late, num_late=num_late)
                self._reset_if_asked()
                self._step(late)
                attended = now if self._controller is not None else attended
                if self._options.linger is not None and now - attended > self._options.linger:
                    break
        finally:
            self._close()

    def _step(self, late: float) -> None:
        controller = self._controller
        try:
            observation = self._task.step(late)
        except SimulationError as error:
            if controller is None:
                raise
            controller.post(Message("error", {"text": f"{error}; the robot holds"}))
            self._task.hold("a step failed")
            observation = self._task.step(late)
        if controller is not None and (travel_time := self._sensors.travel_time()) is not None:
            fields = {"measured_at": time.monotonic(), "outcome": self._task.outcome()}
            controller.post(Message(READING, fields, observation), after=travel_time)

    def _channel(self, direction: int, seed: int) -> LossyChannel:
        """How readings or commands arrive in the episode of this seed."""
        delay = self._options.command_delay if direction == COMMANDS else self._options.sensing_delay
        return LossyChannel(
            delay=delay,
            jitter=self._options.jitter,
            drop=self._options.drop,
            seed=(seed, direction),
        )

    def _reset(self, seed: int) -> None:
        self._sensors = self._channel(SENSORS, seed)
        self._task.reset(seed, self._channel(COMMANDS, seed))

    def _reset_if_asked(self) -> None:
        """Here and not where it is received: what renders images must stay in one thread."""
        with suppress(Empty):
            controller, request, seed = self._resets.get_nowait()
            self._reset(seed)
            controller.post(Message("done", {"request": request, "time": time.monotonic()}))

    # -- the controller -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed at the end
            while True:
                connection, _ = self._listener.accept()
                with suppress(
                    OSError, RobotError, KeyError, TypeError, ValueError
                ):  # whoever does not speak the protocol is left
                    self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(HANDSHAKE_TIMEOUT)
        try:
            hello = receive(connection)
            pid = int(hello.fields["pid"]) if hello is not None and hello.kind == "hello" else None
            if (busy := self._controller) is not None:
                connection.sendall(encode(Message("refused", {"pid": busy.pid})))
                pid = None
        except BaseException:
            connection.close()
            raise
        if pid is None:
            connection.close()
            return
        connection.settimeout(None)
        controller = ControllerConnection(connection, pid)
        controller.post(Message("greeting", self._greeting()))
        self._log.write("connected", pid=pid)
        self._controller = controller
        threading.Thread(target=self._serve, args=(controller,), name="receiver", daemon=True).start()

    def _greeting(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "env_id": self._options.env_id,
            "observation_spec": self._task.observation_spec.to_json(),
            "action_spec": self._task.action_spec.to_json(),
        }

    def _serve(self, controller: ControllerConnection) -> None:
        """Receive from the controller until its connection ends, and then hold."""
        reason = "the controller's connection closed"
        try:
            while (message := receive(controller.connection)) is not None:
                self._answer(controller, message)
        except OSError:
            pass  # as it closes when the controller is killed
        except (RobotError, KeyError, TypeError, ValueError) as error:
            reason = f"the controller sent what cannot be used: {error}"
            controller.post(Message("error", {"text": reason}))
            time.sleep(0.05)  # so that this still arrives
        self._task.hold(reason)
        self._controller = None
        self._log.write("disconnected", pid=controller.pid, reason=reason)
        controller.close()

    def _answer(self, controller: ControllerConnection, message: Message) -> None:
        request = {"request": message.fields.get("request")}
        match message.kind:
            case "command":
                try:
                    self._task.command(message.arrays.get("action"), time.monotonic())
                except RobotError as error:
                    controller.post(Message("error", {"text": str(error)}))
            case "hold":
                controller.post(Message("done", request, {"action": self._task.hold("as commanded")}))
            case "reset":
                self._task.hold("as commanded")
                self._resets.put((controller, message.fields["request"], int(message.fields["seed"])))
            case "quit":
                self.stop()
            case _:
                raise RobotError(f"a message of the unknown kind {message.kind!r}")

    def _close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._address.unlink(missing_ok=True)
        if (controller := self._controller) is not None:
            controller.close()
        self._log.close()


def _listen(address: Path) -> socket.socket:
    """A socket that listens at a path. Raises RobotError if another process does."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        if address.is_socket() and not _answers(address):
            address.unlink()  # left behind by a process that was killed
        listener.bind(str(address))
        listener.listen()
    except OSError as error:
        listener.close()
        raise RobotError(
            f"cannot listen at {address}: {error}; choose a path of at most 100 characters that no other process uses"
        ) from error
    return listener


def _answers(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(address)) == 0


@contextmanager
def _ended_by_signals(server: SimulatedServer) -> Iterator[None]:
    """SIGTERM and SIGINT end the server after its current step."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: server.stop()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM, SIGINT or the end of ``linger``. Returns the exit status; errors are printed in one line."""
    options, address = SimulatedOptions.parse_arguments(arguments)
    try:
        env = environment_maker(options.env_id, options.env)(max_episode_steps=-1, disable_env_checker=True)
        with closing(env):
            server = SimulatedServer(env, options, Path(address))
            with _ended_by_signals(server):
                server.run()
    except (FlowchunkError, gymnasium.error.Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
