"""Generates docs/limits.md from the classes of the limits: each field, its default, and the text below it.

python tests/limits_page.py > docs/limits.md
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import sys
import textwrap

import msgspec

from dms_host.limits import HostLimits, RelayLimits
from dms_peer.connections.limits import ConnectionLimits
from dms_peer.discovery.gossip.limits import GossipLimits
from dms_peer.discovery.settings import DiscoverySettings
from dms_peer.requesting.limits import RequesterLimits
from dms_protocols.rpc.client_limits import ClientLimits
from dms_protocols.rpc.limits import ServiceLimits, Share, Shares
from dms_resources.units import format_size

HEAD = """\
# Limits

Every buffer, queue, table and wait of a peer is bounded. Each bound is a field of one of the classes below. This page
is generated: run `python tests/limits_page.py > docs/limits.md` after changing a limit; a test compares the two.

To change limits of a running peer, write them into the section `limits` of [peer.yaml](configuration.md), or into a
file of their own for `dms-peer run --limits FILE`. The sections `host`, `service`, `connections`, `gossip` and `relay`
take the fields of the tables with the same name in brackets. A missing field keeps its default. Write sizes with a unit
(`64KiB`) and times as `500ms`, `20s` or `5m`. SIGHUP applies the limits of `service` to new streams; the others need a
restart.

```yaml
host:
  max_inbound_connections: 128
  max_inbound_per_address: 8
service:
  frame_bytes: 32KiB
  idle_deadline: 2m
```

The shares of peers are not limits of this file; see [access.md](access.md). In Python, each class is an argument of the
function that it bounds: `open_host(limits=)`, `serve(limits=, shares=)`, `open_connections(limits=)`,
`open_client(limits=)`, `Requester(limits=)`.
"""
TAIL = """
## Fixed bounds

| where | bound |
| --- | --- |
| the ledger | 4,096 changes may wait for the disk; further ones are refused with `storage` |
| the ledger | 65,536 ended leases are remembered for one hour, so that a repeated release succeeds |
| the ledger | a commitment lasts at most 30 days without a renewal |
| the history | 90 days |
| an ensemble request | 64 nodes, each with 64 GPUs; 1,024 ports on all of them; 1,024 excluded peers |
| a signed envelope | 256 KiB |
| an RSA key of another peer | 1 KiB, 4,096 bits |
| an identify message of another peer | 8 KiB; 10 at once and one every 5 seconds; 1,024 peers are counted apart |
| a token | 8 KiB, 16 blocks |
| configuration and ensemble files | 128 KiB, 16 levels, 20,000 values |
| log lines | 20 at once and 1 per second for each peer, 500 at once and 50 per second for all |
| the log | 1,024 peers whose lines are counted apart |
| metrics | 8 connections, 5 seconds for each |
"""
# Floats that are rates, not times.
RATES = (
    "requests",
    "bids",
    "messages",
    "controls",
    "subscriptions",
    "empty_frames_per_second",
    "small_frames_per_second",
)
SECTIONS = (
    ("host", "Host", HostLimits),
    ("service", "Served streams", ServiceLimits),
    ("connections", "Outbound connections", ConnectionLimits),
    ("gossip", "Gossip", GossipLimits),
    ("relay", "Relay", RelayLimits),
    ("", "Shares of one peer; of all peers together (in the access file)", Share),
    ("", "Assured shares (in the access file)", Shares),
    ("", "Clients", ClientLimits),
    ("", "Requesters", RequesterLimits),
    ("", "Discovery", DiscoverySettings),
)


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_section(name, title, limits) for name, title, limits in SECTIONS) + TAIL


def _section(name: str, title: str, limits: type) -> str:
    heading = f"{title} (`{name}`)" if name else title
    rows = [f"| `{field}` | {_shown(field, default)} | {text} |" for field, default, text in _fields(limits)]
    return f"\n## {heading}\n\n| field | default | what it bounds |\n| --- | ---: | --- |\n" + "\n".join(rows) + "\n"


def _fields(limits: type) -> list[tuple[str, object, str]]:
    texts = _texts(limits)
    if issubclass(limits, msgspec.Struct):
        defaults = {field.name: field.default for field in msgspec.structs.fields(limits)}
    else:
        defaults = {field.name: field.default for field in dataclasses.fields(limits)}
    # Only numbers are limits.
    return [
        (name, default, texts.get(name, ""))
        for name, default in defaults.items()
        if default is msgspec.NODEFAULT or (isinstance(default, int | float) and not isinstance(default, bool))
    ]


def _texts(limits: type) -> dict[str, str]:
    """The text below each field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(limits))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, below in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _shown(field: str, default: object) -> str:
    if default is msgspec.NODEFAULT:
        usual = Shares()
        return f"{_number(field, getattr(usual.peer, field))}; {_number(field, getattr(usual.total, field))}"
    assert isinstance(default, int | float)
    return _number(field, default)


def _number(field: str, value: float) -> str:
    if value == math.inf:
        return "none"
    if "bytes" in field:
        return format_size(int(value))
    rate = field.removeprefix("peer_").removeprefix("assured_").removesuffix("_burst") in RATES
    return f"{value:,g} s" if isinstance(value, float) and not rate else f"{value:,g}"


if __name__ == "__main__":
    sys.stdout.write(page())
