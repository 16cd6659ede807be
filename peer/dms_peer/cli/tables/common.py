"""Amounts side by side, and leases at other peers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, cast

from dms_resources.components import GPU, Resources
from dms_resources.ledger.leases import Lease
from dms_resources.units import format_duration, format_size

from ...text import shortened
from ..output import say
from .layout import Column, show_table

if TYPE_CHECKING:
    # They need libp2p, which local commands do not load.
    from ...requesting.reports import PeerEndedLease, PeerFree, PeerLease, PeerLeases

__all__ = [
    "capacity_rows",
    "lease_purpose",
    "peer_and_purpose",
    "short_ids",
    "short_peer_id",
    "show_commit",
    "show_free",
    "show_lease",
    "show_leases",
    "show_release",
    "show_resources",
    "show_table",
]

_LEASE_CHARACTERS: Final = 8
# All Ed25519 peer ids begin with 12D3KooW. These have eight characters more, and can be typed instead of the id.
_PEER_CHARACTERS: Final = 16
# The names of ensembles and nodes are the requester's: a long one must not fill the owner's screen.
_NAME_CHARACTERS: Final = 24


def short_ids(ids: Sequence[str], *, least: int = _LEASE_CHARACTERS) -> list[str]:
    """The first characters of each id: eight, or as many as distinguish them."""
    characters = least
    while len({one[:characters] for one in ids}) < len(set(ids)):
        characters += 1
    return [one[:characters] for one in ids]


def short_peer_id(peer_id: str) -> str:
    """The beginning of a peer id. Other names, such as those of local holders, are not shortened."""
    return peer_id[:_PEER_CHARACTERS] if peer_id.startswith(("12D3KooW", "Qm", "16Uiu2")) else peer_id


def lease_purpose(lease: Lease, *, full: bool = False) -> str:
    """What a lease is for: the node and its ensemble as the requester named them; empty if the ledger has no names."""
    names = [one for one in (lease.ensemble_id, lease.node_id) if one]
    return "/".join(names if full else (shortened(name, _NAME_CHARACTERS) for name in names))


def peer_and_purpose(peer_id: str, lease: Lease, *, full: bool = False) -> str:
    """The peer on the other side of a lease, and what the lease is for: "12D3KooWKT4R3MXs for nightly/trainer"."""
    purpose = lease_purpose(lease, full=full)
    return (peer_id if full else short_peer_id(peer_id)) + (f" for {purpose}" if purpose else "")


def capacity_rows(amounts: Sequence[Resources | None]) -> list[list[str]]:
    """One row for CPU, RAM, disk and every GPU, with a column for each of the amounts. None is shown as nothing."""
    rows = [
        ["CPU cores", *(str(one.cpu.cores) if one else "-" for one in amounts)],
        ["RAM", *(format_size(one.ram.size) if one else "-" for one in amounts)],
        ["disk", *(format_size(one.disk.size) if one else "-" for one in amounts)],
    ]
    devices: dict[str, GPU] = {}
    for one in amounts:
        for gpu in one.gpus if one else ():
            devices.setdefault(gpu.uuid, gpu)
    for uuid, device in devices.items():
        name = f"GPU {device.index} {device.model}".rstrip()
        rows.append([name, *(_vram(one, uuid) for one in amounts)])
    return rows


def _vram(resources: Resources | None, uuid: str) -> str:
    found = [gpu for gpu in resources.gpus if gpu.uuid == uuid] if resources else []
    return format_size(found[0].vram) if found else "-"


def show_resources(title: str, amounts: Mapping[str, Resources | None]) -> None:
    """Print amounts side by side, each under its name."""
    show_table(title, ["", *amounts], capacity_rows(list(amounts.values())))


def show_leases(title: str, leases: Sequence[Lease]) -> None:
    """Print leases at another peer: what is held there, and for how long."""
    rows = [
        [
            short,
            shortened(lease.node_id, _NAME_CHARACTERS) or "-",
            lease.state.value,
            _remaining(lease),
            lease.demand.describe(),
            lease.lease_id,
            str(lease.fence),
        ]
        for lease, short in zip(leases, short_ids([lease.lease_id for lease in leases]), strict=True)
    ]
    columns = (
        Column("lease"),
        Column("node"),
        Column("state"),
        Column("ends in"),
        Column("resources", sentences=True),
        Column("id", 1),
        Column("fence", 2),
    )
    show_table(title, columns, rows)


def _remaining(lease: Lease) -> str:
    return "-" if lease.deadline is None else format_duration(lease.deadline - time.time())


def show_free(free: PeerFree) -> None:
    """Print what another peer has free."""
    notes = [
        *([] if free.onboarded else ["offers nothing"]),
        *(["draining"] if free.draining else []),
        *(["simulated machine"] if free.simulated else []),
    ]
    show_resources(f"free at {free.peer_id}" + (f" ({', '.join(notes)})" if notes else ""), {"free": free})


def show_lease(lease: PeerLease) -> None:
    """Print a lease at another peer."""
    ends = "until it is released" if lease.deadline is None else f"for {_remaining(lease)}"
    say(f"lease {lease.lease_id} is {lease.state.value} {ends}, fencing number {lease.fence}")
    show_resources(f"at {lease.peer_id}", {lease.state.value: lease.resources})


def show_commit(taken: PeerLease | PeerLeases) -> None:
    """Print the leases of one committed bid, or of several."""
    # Distinguished by their fields, because loading their types would load libp2p.
    leases = getattr(taken, "leases", None)
    if leases is None:
        show_lease(cast("PeerLease", taken))
    else:
        show_leases(f"leases at {taken.peer_id}", leases)


def show_release(lease: PeerEndedLease) -> None:
    """Print what was released."""
    say(f"lease {lease.lease_id} at {lease.peer_id} was {lease.state.value} and is {lease.reason.value}")
