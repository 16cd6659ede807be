"""A blocking client: the same wire format, a deadline, and an error for an invalid answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest

from dms_protocols.errors import ConnectionLostError, DeadlineExceededError, FrameError, MessageError, RemoteError
from dms_protocols.rpc.blocking_client import BlockingClient
from dms_protocols.rpc.client_limits import ClientLimits
from dms_protocols.wire.cbor import decode_map, encode_fast
from dms_protocols.wire.envelope import encode_error, encode_event, encode_ok
from dms_protocols.wire.frames import FrameReader, encode_frame


class Ask(msgspec.Struct, frozen=True, tag_field="op", tag="ask"):
    """A request."""

    what: str


class Said(msgspec.Struct, frozen=True):
    """An answer."""

    what: str


def said(what: str) -> bytes:
    return encode_fast({"what": what})


@contextmanager
def asking(answer: Callable[[dict[str, Any]], bytes], limits: ClientLimits | None = None) -> Iterator[BlockingClient]:
    """A client of a server that answers each request with these bytes, one byte at a time. Without bytes it closes."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        frames = FrameReader(1 << 16)
        # The client may have closed before it has read everything.
        with theirs, suppress(OSError):
            while data := theirs.recv(1 << 16):
                frames.feed(data)
                for frame in frames:
                    assert isinstance(frame, bytes)
                    reply = answer(decode_map(frame))
                    if not reply:
                        return
                    for byte in reply:
                        theirs.sendall(bytes((byte,)))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours:
            yield BlockingClient(ours, limits)
    finally:
        thread.join()


def test_questions_one_after_the_other() -> None:
    with asking(lambda request: encode_ok(request["id"], said(f"{request['what']}!"))) as client:
        for what in ("one", "two", "three"):
            assert client.call(Ask(what), Said, timeout=10) == Said(f"{what}!")


def test_answers_to_others_are_passed_over() -> None:
    with asking(lambda request: encode_ok(77, said("no")) + encode_ok(request["id"], said("yes"))) as client:
        assert client.call(Ask("x"), Said, timeout=10) == Said("yes")


def test_a_refusal_is_raised() -> None:
    body = encode_fast({"code": "busy", "message": "later", "retry_after": 2})
    with (
        asking(lambda request: encode_error(request["id"], body)) as client,
        pytest.raises(RemoteError, match="later") as caught,
    ):
        client.call(Ask("x"), Said, timeout=10)
    assert (caught.value.code, caught.value.retry_after) == ("busy", 2.0)


def test_an_error_without_an_id_is_for_the_only_question() -> None:
    body = encode_fast({"code": "bad_cbor", "message": "what?"})
    with asking(lambda request: encode_error(None, body)) as client, pytest.raises(RemoteError, match=r"what\?"):
        client.call(Ask("x"), Said, timeout=10)


def test_events_until_there_are_no_more() -> None:
    def answer(request: dict[str, Any]) -> bytes:
        number = request["id"]
        return b"".join(encode_event(number, said(word)) for word in "abc") + encode_ok(number, b"\xa0")

    with asking(answer) as client:
        assert [event.what for event in client.watch(Ask("x"), Said, timeout=10)] == ["a", "b", "c"]


def test_silence_ends_at_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = BlockingClient(ours)
        with pytest.raises(DeadlineExceededError):
            client.call(Ask("x"), Said, timeout=0.01)
        with pytest.raises(DeadlineExceededError):
            next(iter(client.watch(Ask("x"), Said, timeout=0.01)))
        # The other side does not read, so that the socket is full.
        with pytest.raises(DeadlineExceededError):
            client.call(Ask("x" * (1 << 24)), Said, timeout=0.01)


def test_who_hangs_up_is_lost() -> None:
    with asking(lambda request: b"") as client, pytest.raises(ConnectionLostError):
        client.call(Ask("x"), Said, timeout=10)
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ConnectionLostError):
        BlockingClient(ours).call(Ask("x"), Said, timeout=10)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (encode_frame(b"x" * 200), FrameError),
        (b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", FrameError),
        (encode_ok(0, encode_fast({"what": 7})), MessageError),
        (encode_frame(encode_fast({"id": 0})), MessageError),
    ],
    ids=["too large", "no length", "another form", "neither ok nor error"],
)
def test_what_is_no_answer(reply: bytes, error: type[Exception]) -> None:
    with asking(lambda request: reply, ClientLimits(frame_bytes=100)) as client, pytest.raises(error):
        client.call(Ask("x"), Said, timeout=10)
