"""Protocol negotiation within limits.

What breaks:
- `MultiselectCommunicator.read` trusts the announced length of a line: a peer that has proved nothing can make us
  buffer whatever it sends until the deadline.
- Bytes that are not UTF-8 raise UnicodeDecodeError, which no caller expects.
- A negotiation may have any number of lines.
- A request for a protocol waits for the greeting first, which costs a round trip.
Measure: `BoundedCommunicator` limits lines and their number, and raises the one error that callers expect. It sends the
greeting with the request, and on our streams both are sent with the next write. `BoundedMultiselect`, `BoundedClient`
and `BoundedSelector` use it instead of the original.
Upstream: https://github.com/libp2p/py-libp2p/issues/417 (a failed negotiation ends the listener); for the unbounded
line no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Generic, TypeVar

import trio
from libp2p.abc import IMultiselectCommunicator
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.exceptions import ParseError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import (
    MultiselectClientError,
    MultiselectCommunicatorError,
    ProtocolNotSupportedError,
)
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import (
    MULTISELECT_PROTOCOL_ID,
    PROTOCOL_NOT_FOUND_MSG,
    MultiselectClient,
)
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.utils import encode_delim
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from ..limits import HostLimits
from ..yamux.stream import BoundedYamuxStream

__all__ = ["BoundedClient", "BoundedCommunicator", "BoundedMultiselect", "BoundedSelector"]

Handler = TypeVar("Handler")

# Bytes of "/multistream/1.0.0" and the end of the line.
GREETING_LINE = 19


class BoundedCommunicator(MultiselectCommunicator):
    """Reads lines of bounded length and number. Every failure is a MultiselectCommunicatorError."""

    def __init__(self, stream: ReadWriteCloser, limits: HostLimits) -> None:
        super().__init__(stream)
        # Both sides begin with the same line. A longer line is no negotiation.
        self._max_line = GREETING_LINE
        self._max_further_line = limits.max_negotiation_line
        self._lines_left = limits.max_negotiation_lines

    async def write(self, msg_str: str) -> None:
        """Send one line. On our own streams it is sent with the next write, or before this side reads."""
        await self._write_lines(msg_str)

    async def _write_lines(self, *lines: str) -> None:
        data = b"".join(encode_delim(line.encode()) for line in lines)
        muxed = getattr(self.read_writer, "muxed_stream", None)
        try:
            if isinstance(muxed, BoundedYamuxStream):
                await muxed.write_soon(data)
            else:
                await self.read_writer.write(data)
        except (IOException, MuxedStreamError) as error:
            raise MultiselectCommunicatorError("the stream is gone") from error

    async def propose(self, protocol: TProtocol) -> bool:
        """Send the greeting and the request for a protocol together. Returns whether the other side agrees.

        Raises MultiselectClientError for an invalid answer, and MultiselectCommunicatorError.
        """
        await self._write_lines(MULTISELECT_PROTOCOL_ID, protocol)
        greeting = await self.read()
        if greeting != MULTISELECT_PROTOCOL_ID:
            raise MultiselectClientError(f"{greeting[:100]!r} is no greeting")
        answer = await self.read()
        if answer not in (protocol, PROTOCOL_NOT_FOUND_MSG):
            raise MultiselectClientError(f"{answer[:100]!r} is no answer to {protocol}")
        return answer == protocol

    async def read(self) -> str:
        """One line without its end. If cancelled, the negotiation is lost."""
        self._lines_left -= 1
        if self._lines_left < 0:
            raise MultiselectCommunicatorError("too many lines in one negotiation")
        try:
            line = _decode(await read_varint_prefixed_bytes_limited(self.read_writer, self._max_line))
        except (ParseError, IOException, ValueError) as error:
            raise MultiselectCommunicatorError(f"no line of multistream-select: {type(error).__name__}") from error
        self._max_line = self._max_further_line
        return line


def _decode(line: bytes) -> str:
    if not line.endswith(b"\n"):
        raise ParseError("the line has no end")
    return line[:-1].decode()


def _bounded(communicator: IMultiselectCommunicator, limits: HostLimits) -> IMultiselectCommunicator:
    if isinstance(communicator, MultiselectCommunicator):
        return BoundedCommunicator(communicator.read_writer, limits)
    return communicator


class BoundedMultiselect(Multiselect):
    """The answering side, within the host's limits, whatever limits the caller passes."""

    def __init__(self, handlers: dict[TProtocol | None, StreamHandlerFn | None], limits: HostLimits) -> None:
        super().__init__(handlers)
        self._limits = limits

    async def negotiate(
        self, communicator: IMultiselectCommunicator, negotiate_timeout: float = 0
    ) -> tuple[TProtocol | None, StreamHandlerFn | None]:
        """Like the original, but the time is HostLimits.negotiation_timeout, whatever `negotiate_timeout` says."""
        # The original declares whole seconds but accepts fractions.
        timeout: int = self._limits.negotiation_timeout  # type: ignore[assignment]
        return await super().negotiate(_bounded(communicator, self._limits), timeout)


class BoundedClient(MultiselectClient):
    """The requesting side, within the host's limits, because the answering peer may be hostile too."""

    def __init__(self, limits: HostLimits) -> None:
        super().__init__()
        self._limits = limits

    async def select_one_of(
        self,
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: float = 0,
    ) -> TProtocol:
        """Like the original, but the time is HostLimits.negotiation_timeout, whatever `negotiate_timeout` says."""
        bounded = _bounded(communicator, self._limits)
        if not isinstance(bounded, BoundedCommunicator):
            # The original declares whole seconds but accepts fractions.
            timeout: int = self._limits.negotiation_timeout  # type: ignore[assignment]
            return await super().select_one_of(protocols, bounded, timeout)
        with trio.move_on_after(self._limits.negotiation_timeout):
            return await self.select(protocols, bounded)
        raise MultiselectClientError(f"no answer within {self._limits.negotiation_timeout:g} s")

    async def select(self, protocols: Sequence[TProtocol], communicator: BoundedCommunicator) -> TProtocol:
        """The first of the protocols that the other side speaks. The original waits for the greeting first.

        Raises ProtocolNotSupportedError, and MultiselectClientError for everything else.
        """
        first, *others = protocols
        try:
            if await communicator.propose(first):
                return first
        except MultiselectCommunicatorError as error:
            raise MultiselectClientError(f"no agreement on {first}: {error}") from error
        for protocol in others:
            with suppress(ProtocolNotSupportedError):
                return await self.try_select(communicator, protocol)
        raise ProtocolNotSupportedError(f"the other side speaks none of {', '.join(protocols)}")


class BoundedSelector(GenericMultistreamSelector[Handler], Generic[Handler]):
    """Chooses the security protocol and the multiplexer within the host's limits."""

    def __init__(self, limits: HostLimits) -> None:
        super().__init__()
        self.multiselect = BoundedMultiselect({}, limits)
        self.multiselect_client = BoundedClient(limits)
