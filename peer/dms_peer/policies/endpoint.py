"""A policy behind HTTP: the peer posts the question as JSON, and the body of a 200 is the answer.

Connections are reused. Redirects are not followed and proxies of the environment are not used, so the answer comes from
the address that the owner named. Compressed bodies are refused, so the limit on bytes holds.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from dms_protocols.bidding.policies import Decisions, PolicyRequest

from ..errors import PolicyError
from .documents import LARGEST_ANSWER, question_document, read_answer
from .settings import EndpointSettings

if TYPE_CHECKING:
    import httpx

__all__ = ["EndpointPolicy", "open_endpoint"]

_HEADERS = {
    "accept": "application/json",
    "accept-encoding": "identity",
    "content-type": "application/json",
    "user-agent": "dms-peer",
}


class EndpointPolicy:
    """Queries an endpoint; made by `open_endpoint`. `decide` raises httpx.HTTPError and PolicyError."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def decide(self, request: PolicyRequest) -> Decisions:
        """Posts the question and reads the decisions. May be cancelled: then the connection is closed."""
        question = question_document(request)
        async with self._client.stream("POST", self._url, content=question, headers=_HEADERS) as response:
            if response.status_code != 200:
                raise PolicyError(f"it answered with status {response.status_code}", code="policy_failed")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise PolicyError("it answered with a compressed body", code="policy_failed")
            body = await _read(response)
        if len(body) > LARGEST_ANSWER:
            raise PolicyError(f"it answered with more than {LARGEST_ANSWER} bytes", code="policy_failed")
        return read_answer(body, request)


async def _read(response: httpx.Response) -> bytes:
    """Reads the body, up to a little more than the largest answer."""
    body = bytearray()
    # A `break` would leave httpx's generators unfinished. Cancellation finishes them.
    with trio.CancelScope() as scope:
        async for part in response.aiter_raw():
            body += part
            if len(body) > LARGEST_ANSWER:
                scope.cancel()
    return bytes(body)


@asynccontextmanager
async def open_endpoint(settings: EndpointSettings) -> AsyncIterator[EndpointPolicy]:
    """Opens a policy; its connections are closed when the block ends."""
    # Importing httpx takes half a second; only peers with such a policy need it.
    import httpx

    limits = httpx.Limits(max_connections=settings.max_concurrent, max_keepalive_connections=settings.max_concurrent)
    async with httpx.AsyncClient(
        # PolicyGate applies the budget.
        timeout=None,
        limits=limits,
        follow_redirects=False,
        trust_env=False,
        verify=ssl.create_default_context(),
    ) as client:
        yield EndpointPolicy(client, settings.url)
