"""Messages between a simulated robot and its controller: a JSON header and raw arrays, with their lengths in front.

    4 bytes   length of the header, big-endian          4 bytes   length of the arrays, big-endian
    header    {"kind": …, "fields": {…}, "arrays": [[name, dtype, shape], …]}, UTF-8
    arrays    their values one after the other, in C order, little-endian

Nothing is pickled, so that a message can only be data.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from flowchunk.datasets.errors import RobotError

LENGTHS = struct.Struct(">II")
MAX_HEADER = 1 << 20  # bytes
MAX_ARRAYS = 1 << 27  # bytes, twenty images of 1080p
DTYPE = re.compile(r"[<|][biuf][1248]")


@dataclass(frozen=True)
class Message:
    """One message. kind: what it is. fields: what JSON can hold. arrays: numbers of any shape."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def encode(message: Message) -> bytes:
    """The bytes of a message. Raises RobotError if it is too large or its arrays are not numbers."""
    arrays = {name: _little_endian(name, array) for name, array in message.arrays.items()}
    listed = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    header = json.dumps({"kind": message.kind, "fields": dict(message.fields), "arrays": listed}).encode()
    values = b"".join(array.tobytes() for array in arrays.values())
    _require_small(len(header), len(values))
    return LENGTHS.pack(len(header), len(values)) + header + values


def decode(header: bytes, values: bytes) -> Message:
    """The message of a header and its arrays. Raises RobotError if it is damaged."""
    try:
        content = json.loads(header)
        kind, fields, listed = content["kind"], content["fields"], content["arrays"]
        if not (isinstance(kind, str) and isinstance(fields, dict)):
            raise TypeError(f"kind {kind!r} and fields {fields!r}")
        arrays, start = {}, 0
        for name, dtype, shape in listed:
            if not (isinstance(name, str) and DTYPE.fullmatch(dtype) and _is_shape(shape)):
                raise ValueError(f"an array {name!r} of {dtype!r} and shape {shape!r}")
            stop = start + np.dtype(dtype).itemsize * prod(shape)
            arrays[name] = np.frombuffer(values[start:stop], dtype).reshape(shape).copy()
            start = stop
        if start != len(values):
            raise ValueError(f"{len(values)} bytes of arrays, of which {start} are described")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise RobotError(
            f"a damaged message: expected a header that describes its arrays, got {error}; both ends of the connection must "
            "be of the same version of flowchunk"
        ) from error
    return Message(kind, fields, arrays)


def receive(connection: socket.socket) -> Message | None:
    """The next message, or None if the other end has closed the connection between two messages.

    Raises RobotError for a message that is damaged, too large or cut off; OSError if the connection fails.
    """
    lengths = _read(connection, LENGTHS.size)
    if not lengths:
        return None
    header_size, values_size = LENGTHS.unpack(_whole(lengths, LENGTHS.size))
    _require_small(header_size, values_size)
    header = _whole(_read(connection, header_size), header_size)
    return decode(header, _whole(_read(connection, values_size), values_size))


def _read(connection: socket.socket, size: int) -> bytes:
    """Up to ``size`` bytes; fewer only if the connection ends."""
    read = bytearray()
    while len(read) < size:
        part = connection.recv(min(size - len(read), 1 << 20))
        if not part:
            break
        read += part
    return bytes(read)


def _whole(read: bytes, size: int) -> bytes:
    if len(read) < size:
        raise RobotError(
            f"the connection ended within a message: expected {size} bytes, got {len(read)}; connect again"
        )
    return read


def _require_small(header_size: int, values_size: int) -> None:
    if header_size > MAX_HEADER or values_size > MAX_ARRAYS:
        raise RobotError(
            f"a message of {header_size} + {values_size} bytes: expected at most {MAX_HEADER} + {MAX_ARRAYS}; use smaller "
            "images, and connect only what speaks this protocol"
        )


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)


def _little_endian(name: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if not DTYPE.fullmatch(little.dtype.str):
        raise RobotError(f"{name}: expected an array of numbers, got {array.dtype}; only numbers can be sent")
    return little
