"""Writes docs/limits.md: every bound with its default, as the classes that hold them say.

python tests/limits_page.py > docs/limits.md
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys

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

Every buffer, queue, table and wait of a peer has a bound, and each bound is a field of one of the classes below. This
page is written by `python tests/limits_page.py > docs/limits.md`, and a test compares it.

`dms-peer run --limits FILE` changes those of a running peer: a YAML file with the sections `host`, `service`,
`connections`, `gossip` and `relay`, each with the fields that are to be other than their defaults. Sizes are written as
`64KiB` or in bytes, times as `500ms`, `20s` or `5m`.

```yaml
host:
  max_inbound_connections: 128
  max_inbound_per_address: 8
service:
  frame_bytes: 32KiB
  idle_deadline: 2m
```

How peers share what there is (`shares`) is in the access file, see [access.md](access.md). In Python each class is an
argument of what it bounds: `open_host(limits=)`, `serve(limits=, shares=)`, `open_connections(limits=)`,
`open_client(limits=)`, `Requester(limits=)`.
"""
TAIL = """
## Fixed bounds

| where | bound |
| --- | --- |
| the ledger | 4,096 changes that wait for the disk; further ones are refused with `storage` |
| the ledger | 65,536 leases that ended are remembered for repeated releases, for an hour |
| the ledger | a commitment lasts 30 days at most before it is renewed |
| the history | 90 days |
| an ensemble request | 64 nodes, each with 64 GPUs; 1,024 ports on all of them; 1,024 excluded peers |
| a signed envelope | 256 KiB |
| an RSA key of another peer | 1 KiB, 4,096 bits |
| what a peer says of itself (identify) | 8 KiB; 10 messages at once and one in 5 seconds; 1,024 peers told apart |
| a token | 8 KiB, 16 blocks |
| files of the owner | 256 KiB |
| log lines | 20 at once and 1 per second for each peer, 500 at once and 50 per second for all; 1,024 peers told apart |
| metrics | 8 connections, 5 seconds each |
"""
# Numbers per second, which are no times.
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
    ("host", "The host", HostLimits),
    ("service", "A stream that is served", ServiceLimits),
    ("connections", "Connections that are made", ConnectionLimits),
    ("gossip", "Gossip", GossipLimits),
    ("relay", "A relay", RelayLimits),
    ("", "The share of one peer, and of all together, in the access file", Share),
    ("", "Sharing, in the access file", Shares),
    ("", "A client", ClientLimits),
    ("", "A requester", RequesterLimits),
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
    # What is no number bounds nothing.
    return [
        (name, default, texts.get(name, ""))
        for name, default in defaults.items()
        if default is msgspec.NODEFAULT or (isinstance(default, int | float) and not isinstance(default, bool))
    ]


def _texts(limits: type) -> dict[str, str]:
    """What the source says of each field: the comment above it, which may be for several, or the text below it."""
    texts: dict[str, str] = {}
    comment: list[str] = []
    field, below, after_field = "", "", False
    for line in map(str.strip, inspect.getsource(limits).splitlines()):
        if below or (field and line.startswith('"""') and after_field):
            below = f"{below} {line}".strip()
            if below.endswith('"""') and len(below) > 5:
                texts[field], below = below.strip('"'), ""
        elif line.startswith("#"):
            comment = [line.strip("# ")] if after_field or not comment else [*comment, line.strip("# ")]
        elif (
            ": " in line and "(" not in line.partition(":")[0] and not line.startswith(("def", "class", "return", "@"))
        ):
            field = line.partition(":")[0]
            texts[field] = " ".join(comment)
            after_field = True
            continue
        elif not line:
            comment = []
        after_field = False
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
