"""Protocol negotiation that garbage cannot break or bloat.

What breaks: `MultiselectCommunicator.read` believes the length a peer announces, so that a peer that has proved nothing
can make us collect as much as it sends until the deadline; bytes that are not UTF-8 raise UnicodeDecodeError, which no
caller expects; a negotiation may go on for any number of lines.
Measure: `BoundedCommunicator` bounds the line and the number of lines and turns everything into the one error that the
callers expect; on our streams its lines go out with what is said next. `BoundedMultiselect`, `BoundedClient` and
`BoundedSelector` put it in the place of the original.
Upstream: https://github.com/libp2p/py-libp2p/issues/417 (a failed negotiation takes the listener down); for the
unbounded line no upstream report found (November 2026).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from libp2p.abc import IMultiselectCommunicator
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.exceptions import ParseError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IOException
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.generic_selector import GenericMultistreamSelector
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.utils import encode_delim
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from .limits import HostLimits
from .yamux_stream import BoundedYamuxStream

__all__ = ["BoundedClient", "BoundedMultiselect", "BoundedSelector"]

Handler = TypeVar("Handler")

# Bytes of "/multistream/1.0.0" and the end of the line.
GREETING_LINE = 19


class BoundedCommunicator(MultiselectCommunicator):
    """Reads lines of bounded length and number; every failure is a MultiselectCommunicatorError."""

    def __init__(self, stream: ReadWriteCloser, limits: HostLimits) -> None:
        super().__init__(stream)
        # Both sides begin with the same line: what announces a longer one is no negotiation, and not worth a wait.
        self._max_line = GREETING_LINE
        self._max_further_line = limits.max_negotiation_line
        self._lines_left = limits.max_negotiation_lines

    async def write(self, msg_str: str) -> None:
        """Send one line; on our own streams with whatever is said next, unless an answer is waited for before."""
        muxed = getattr(self.read_writer, "muxed_stream", None)
        if not isinstance(muxed, BoundedYamuxStream):
            await super().write(msg_str)
            return
        try:
            await muxed.write_soon(encode_delim(msg_str.encode()))
        except MuxedStreamError as error:
            raise MultiselectCommunicatorError("the stream is gone") from error

    async def read(self) -> str:
        """One line without its end. Cancellation loses at most a negotiation that is over anyway."""
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
    """The answering side, within the host's bounds whatever the caller asks for."""

    def __init__(self, handlers: dict[TProtocol | None, StreamHandlerFn | None], limits: HostLimits) -> None:
        super().__init__(handlers)
        self._limits = limits

    async def negotiate(
        self, communicator: IMultiselectCommunicator, negotiate_timeout: float = 0
    ) -> tuple[TProtocol | None, StreamHandlerFn | None]:
        """As the original; the time is HostLimits.negotiation_timeout, whatever `negotiate_timeout` says."""
        # The original declares whole seconds and means any.
        timeout: int = self._limits.negotiation_timeout  # type: ignore[assignment]
        return await super().negotiate(_bounded(communicator, self._limits), timeout)


class BoundedClient(MultiselectClient):
    """The asking side, within the host's bounds: the answering peer may be just as hostile."""

    def __init__(self, limits: HostLimits) -> None:
        super().__init__()
        self._limits = limits

    async def select_one_of(
        self,
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: float = 0,
    ) -> TProtocol:
        """As the original; the time is HostLimits.negotiation_timeout, whatever `negotiate_timeout` says."""
        # The original declares whole seconds and means any.
        timeout: int = self._limits.negotiation_timeout  # type: ignore[assignment]
        return await super().select_one_of(protocols, _bounded(communicator, self._limits), timeout)


class BoundedSelector(GenericMultistreamSelector[Handler], Generic[Handler]):
    """Chooses the security protocol and the multiplexer within the host's bounds."""

    def __init__(self, limits: HostLimits) -> None:
        super().__init__()
        self.multiselect = BoundedMultiselect({}, limits)
        self.multiselect_client = BoundedClient(limits)
