"""Messages arrive as they were sent; what is damaged, cut off or too large is an error and never data."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from flowchunk.datasets.errors import RobotError
from flowchunk.envs.robots.wire import LENGTHS, MAX_ARRAYS, MAX_HEADER, Message, decode, encode, receive

DTYPES = ["?", "u1", "i2", "<i4", ">i8", "f2", "<f4", ">f8"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
some_arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0))
)
messages = st.builds(
    Message,
    st.text(),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.dictionaries(st.text(), some_arrays, max_size=3),
)
MESSAGE = Message("reading", {"step": 3}, {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((2, 2, 3), np.uint8)})


def received(sent: bytes) -> list[Message]:
    """What arrives through a real connection that is closed after these bytes."""
    near, far = socket.socketpair()
    with near, far:
        far.settimeout(10)

        def send() -> None:
            near.sendall(sent)
            near.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return list(iter(lambda: receive(far), None))
        finally:
            far.close()
            sender.join()


def assert_equal(got: Message, sent: Message) -> None:
    assert (got.kind, got.fields, list(got.arrays)) == (sent.kind, sent.fields, list(sent.arrays))
    for name, array in sent.arrays.items():
        assert got.arrays[name].dtype == array.dtype.newbyteorder("<")
        assert got.arrays[name].shape == array.shape
        np.testing.assert_array_equal(got.arrays[name], array)


@settings(max_examples=50)
@given(st.lists(messages, max_size=3))
def test_messages_arrive_as_they_were_sent(sent: list[Message]) -> None:
    got = received(b"".join(map(encode, sent)))
    assert len(got) == len(sent)
    for one, other in zip(got, sent, strict=True):
        assert_equal(one, other)


def test_arrays_of_a_message_can_be_changed() -> None:
    (got,) = received(encode(MESSAGE))
    got.arrays["a"][0] = 7
    assert got.arrays["b"].sum() == 0


def test_a_large_message_arrives_in_parts() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    (got,) = received(encode(Message("reading", {}, {"image": image})))
    np.testing.assert_array_equal(got.arrays["image"], image)


@given(st.integers(1, len(encode(MESSAGE)) - 1))
def test_a_message_that_is_cut_off_is_an_error(length: int) -> None:
    with pytest.raises(RobotError, match=r"the connection ended within a message: expected \d+ bytes, got \d+"):
        received(encode(MESSAGE)[:length])


@given(st.integers(LENGTHS.size, len(encode(MESSAGE)) - 1), st.integers(1, 255))
def test_a_damaged_byte_gives_an_error_or_another_message(place: int, change: int) -> None:
    """Never another exception; within the values it cannot be noticed."""
    damaged = bytearray(encode(MESSAGE))
    damaged[place] ^= change
    with suppress(RobotError):
        assert len(received(bytes(damaged))) == 1


@given(st.binary())
@example(b"[" * 100_000)
def test_any_header_is_a_message_or_an_error(header: bytes) -> None:
    with pytest.raises(RobotError, match="damaged message"):
        decode(header, b"")


@pytest.mark.parametrize(
    ("listed", "values"),
    [
        ([["a", "<f8", [1]]], b"1234567"),
        ([["a", "<f8", [1]]], b"123456789"),
        ([["a", "<f8", [-1]]], b"12345678"),
        ([["a", "<f8", [True]]], b"12345678"),
        ([["a", "<f8", 1]], b"12345678"),
        ([["a", "|O8", [1]]], b"12345678"),
        ([["a", "<f8,<f8", [1]]], bytes(16)),
        ([["a", ["f8"], [1]]], b"12345678"),
        ([[1, "<f8", [1]]], b"12345678"),
        ([["a", "<f8"]], b"12345678"),
        ([["a", "<f8", [10**30]]], b"12345678"),
        ([], b"1"),
        (None, b""),
        ("<f8", b""),
    ],
)
def test_headers_that_do_not_fit_the_values_are_errors(listed: Any, values: bytes) -> None:
    header = json.dumps({"kind": "x", "fields": {}, "arrays": listed}).encode()
    with pytest.raises(RobotError, match="damaged message"):
        decode(header, values)


@pytest.mark.parametrize(
    "content", [{"kind": 1, "fields": {}, "arrays": []}, {"kind": "x", "fields": [], "arrays": []}, 3, {}]
)
def test_headers_of_another_form_are_errors(content: Any) -> None:
    with pytest.raises(RobotError, match="damaged message"):
        decode(json.dumps(content).encode(), b"")


@pytest.mark.parametrize("sizes", [(MAX_HEADER + 1, 0), (2, MAX_ARRAYS + 1), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_an_oversized_message_is_refused_before_it_is_read(sizes: tuple[int, int]) -> None:
    with pytest.raises(RobotError, match=rf"a message of {sizes[0]} \+ {sizes[1]} bytes: expected at most"):
        received(LENGTHS.pack(*sizes))


def test_oversized_and_foreign_arrays_are_not_sent() -> None:
    with pytest.raises(RobotError, match="expected at most"):
        encode(Message("x", {"text": "a" * MAX_HEADER}))
    for foreign in (np.array(["text"]), np.array([None]), np.zeros(2, np.complex128), np.zeros(1, np.longdouble)):
        with pytest.raises(RobotError, match="a: expected an array of numbers"):
            encode(Message("x", {}, {"a": foreign}))
