"""The operations of a service, and the handlers that answer them.

There are three kinds, by the cost of the handler:

- quick: a plain function that reads memory. It is answered in place, in the order of the requests.
- slow: an async function, such as a durable write. It runs in a task, within a deadline. A plain function that returns
  either an answer or a coroutine chooses between the two each time.
- watch: an async context manager that yields an async iterator of events. It runs until its end or `cancel`.

A handler gets the typed request and the caller. It returns a typed answer, or one that is already encoded. To refuse,
it raises a ProtocolError or an error of the ledger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from ..tokens.grants import Grants
from ..wire.conversion import to_bytes
from ..wire.envelope import Encoded

__all__ = ["Answer", "Caller", "Operation", "Operations", "encode_answer", "operation_name"]

Answer: TypeAlias = msgspec.Struct | Encoded
Request = TypeVar("Request", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer that sent a request. The transport has authenticated its id.

    `local`: the request came over this machine's own socket. `known`: the owner's rules list the peer for this
    operation. `group` is the address of the peer, which it may share with other peer ids; empty if not known. `grants`
    are those of its token; None if it needed no token. `trace` is the requester's name for the piece of work, for the
    log of requests.
    """

    peer_id: str
    local: bool = False
    known: bool = False
    group: str = ""
    grants: Grants | None = None
    trace: str = ""


QuickHandler: TypeAlias = Callable[[Request, Caller], Answer]
SlowHandler: TypeAlias = Callable[[Request, Caller], Answer | Coroutine[Any, Any, Answer]]
WatchHandler: TypeAlias = Callable[[Request, Caller], AbstractAsyncContextManager[AsyncIterator[Answer]]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its name on the wire, the type of its requests and its handler.

    `rate` names a second rate that its requests count against, for operations with a limit of their own.
    """

    name: str
    kind: Literal["quick", "slow", "watch"]
    request_type: type[msgspec.Struct]
    handler: Callable[[Any, Caller], Any]
    rate: Literal["", "bids"] = ""


def operation_name(request_type: type[msgspec.Struct]) -> str:
    """The `op` of a request type, which is its msgspec tag."""
    tag = request_type.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{request_type.__name__} names no operation: give it tag_field='op' and a tag")
    return tag


def encode_answer(answer: Answer) -> Encoded:
    """The bytes of an answer, which may be encoded already."""
    return answer if isinstance(answer, bytes) else to_bytes(answer)


class Operations(Mapping[str, Operation]):
    """The operations of a protocol, by name; `|` merges those of several, whose names must differ."""

    def __init__(self) -> None:
        self._by_name: dict[str, Operation] = {}

    def quick(self, request_type: type[Request], handler: QuickHandler[Request]) -> None:
        """Add an operation that is answered from memory."""
        self._add(Operation(operation_name(request_type), "quick", request_type, handler))

    def slow(
        self, request_type: type[Request], handler: SlowHandler[Request], *, rate: Literal["", "bids"] = ""
    ) -> None:
        """Add an operation that takes time."""
        self._add(Operation(operation_name(request_type), "slow", request_type, handler, rate))

    def watch(self, request_type: type[Request], handler: WatchHandler[Request]) -> None:
        """Add an operation that answers with events."""
        self._add(Operation(operation_name(request_type), "watch", request_type, handler))

    def _add(self, operation: Operation) -> None:
        if operation.name in self._by_name:
            raise ValueError(f"two operations are named {operation.name}")
        self._by_name[operation.name] = operation

    def __or__(self, other: Operations) -> Operations:
        merged = Operations()
        for operation in (*self.values(), *other.values()):
            merged._add(operation)
        return merged

    def __getitem__(self, name: str) -> Operation:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)
