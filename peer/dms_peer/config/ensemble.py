"""Reads ensemble files: the demands of several nodes, in YAML with the DMS's field names (docs/ensembles.md).

Two fields are not part of the bid request and are never sent: `peer` pins a node to one peer, and `different_peers`
puts every node on a different peer.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from dms_protocols.errors import MessageError
from dms_protocols.messages.bid import (
    MAX_GPUS,
    MAX_NODES,
    MAX_PORTS,
    BidRequest,
    EnsembleRequest,
    GeneralRequirements,
    Location,
    NodeRequest,
    Place,
    count_ports,
)
from dms_protocols.rpc.limits import ServiceLimits
from dms_protocols.wire.conversion import from_map, to_bytes, to_map
from dms_resources.components import GPUVendor
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand

from ..requesting.node_jobs import NodeJob
from .ensemble_jobs import is_dms_ensemble, read_jobs, with_job
from .yaml_fields import Field, parse_fields, read_file, read_peer_id, read_place

__all__ = [
    "EnsembleFile",
    "parse_ensemble",
    "read_ensemble_file",
]

_CODE: Final = "bad_ensemble"
_MOST_EXCLUDED: Final = 1024
_MOST_PLACES: Final = 64
_MOST_EXECUTORS: Final = 16
_LARGEST_AMOUNT: Final = 2**63 - 1
_CLOCK: Final = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,9}))?\s*GHz", re.IGNORECASE)
# The other fields of a request: its id, the operation, hold and ttl.
_ENVELOPE_BYTES: Final = 256


class EnsembleFile(Struct, frozen=True, kw_only=True):
    """The content of an ensemble file.

    `pins` maps a `node_id` to the peer that must take the node. With `different_peers` no peer may take two nodes.
    `jobs` maps a `node_id` to what runs there. `warnings` are sentences about how the file was read.
    """

    id: str = ""
    nodes: tuple[NodeRequest, ...]
    peer_exclusion: tuple[str, ...] = ()
    pins: dict[str, str] = {}
    different_peers: bool = False
    jobs: dict[str, NodeJob] = {}
    warnings: tuple[str, ...] = ()

    def asked(self, *, deadline: float, nonce: int | None = None) -> EnsembleRequest:
        """The request for bids until `deadline` (Unix seconds). The nonce is random, and so is a missing id."""
        return EnsembleRequest(
            id=self.id or secrets.token_hex(8),
            nonce=secrets.randbits(53) if nonce is None else nonce,
            deadline=deadline,
            request=self.nodes,
            peer_exclusion=self.peer_exclusion,
        )

    def for_peer(self, peer_id: str) -> EnsembleFile:
        """The ensemble without the nodes that are pinned to other peers. It may be empty."""
        nodes = tuple(node for node in self.nodes if self.pins.get(node.node_id, peer_id) == peer_id)
        return replace(self, nodes=nodes)


def read_ensemble_file(path: Path) -> EnsembleFile:
    """Reads an ensemble file. Raises DocumentError `bad_ensemble`. Blocks on disk."""
    return parse_ensemble(read_file(path, _CODE), str(path), path.parent)


def parse_ensemble(content: bytes, name: str, folder: Path | None = None) -> EnsembleFile:
    """Reads an ensemble from bytes; `name` is its name in errors. Raises DocumentError `bad_ensemble` only.

    Also reads ensembles of the DMS (V1). Files that its jobs name are read from `folder`; without it they are refused.
    """
    root = parse_fields(content, name, _CODE)
    if is_dms_ensemble(root):
        from .dms_ensemble import read_dms_ensemble

        found = read_dms_ensemble(root, folder)
        ensemble = EnsembleFile(
            nodes=found.nodes,
            peer_exclusion=found.peer_exclusion,
            pins=found.pins,
            jobs=found.jobs,
            warnings=found.warnings,
        )
        _check_nodes(ensemble, list(found.entries))
        _check_message(ensemble, root)
        return ensemble
    fields = root.fields(("id", "request", "peer_exclusion", "different_peers", "jobs"), needed=("request",))
    entries = fields["request"].items(MAX_NODES)
    if not entries:
        fields["request"].fail("is empty", "write at least one node")
    read = [_node(entry) for entry in entries]
    nodes = {node.node_id: node for node, _ in read}
    jobs = fields.get("jobs", lambda one: read_jobs(one, nodes, folder), {})
    ensemble = EnsembleFile(
        id=fields.get("id", Field.text, ""),
        nodes=tuple(with_job(node, jobs[node.node_id]) if node.node_id in jobs else node for node, _ in read),
        peer_exclusion=fields.get("peer_exclusion", _excluded, ()),
        pins={node.node_id: peer for node, peer in read if peer},
        different_peers=fields.get("different_peers", Field.flag, False),
        jobs=jobs,
    )
    _check_nodes(ensemble, entries)
    _check_message(ensemble, root)
    return ensemble


def _node(field: Field) -> tuple[NodeRequest, str]:
    """The node, and the peer to which it is pinned, or an empty string."""
    fields = field.fields(
        ("node_id", "peer", "executors", "resources", "location", "public_ports", "general_requirements"),
        needed=("node_id", "resources"),
    )
    node = NodeRequest(
        node_id=fields["node_id"].text(),
        executors=fields.get("executors", lambda one: one.texts(_MOST_EXECUTORS), ()),
        resources=_resources(fields["resources"]),
        location=fields.get("location", _location, Location()),
        public_ports=fields.get("public_ports", _ports, PortDemand()),
        general_requirements=fields.get("general_requirements", _requirements, GeneralRequirements()),
    )
    return node, fields.get("peer", read_peer_id, "")


def _resources(field: Field) -> Demand:
    fields = field.fields(("cpu", "ram", "disk", "gpus"), needed=("cpu", "ram", "disk"))
    return Demand(
        cpu=_cpu(fields["cpu"]),
        ram=RAMDemand(size=_size_of(fields["ram"])),
        disk=DiskDemand(size=_size_of(fields["disk"])),
        gpus=fields.get("gpus", lambda one: tuple(map(_gpu, one.items(MAX_GPUS))), ()),
    )


def _size_of(field: Field) -> int:
    return field.fields(("size",), needed=("size",))["size"].size()


def _cpu(field: Field) -> CPUDemand:
    fields = field.fields(("cores", "architecture", "clock_speed"), needed=("cores",))
    return CPUDemand(
        cores=fields["cores"].cores(),
        architecture=fields.get("architecture", Field.text, ""),
        clock_speed=fields.get("clock_speed", _clock_speed, 0),
    )


def _clock_speed(field: Field) -> int:
    """Reads hertz, written as "2.5GHz" or as a number."""
    found = _CLOCK.fullmatch(field.text())
    if found is None:
        return field.whole(0, _LARGEST_AMOUNT)
    return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0"))


def _gpu(field: Field) -> GPUDemand:
    fields = field.fields(("vram", "vendor", "model", "uuid", "exclusive"), needed=("vram",))
    vendors = [vendor.value for vendor in GPUVendor if vendor is not GPUVendor.NONE]
    return GPUDemand(
        vram=fields["vram"].size(),
        vendor=GPUVendor(fields.get("vendor", lambda one: one.choice(vendors), GPUVendor.UNKNOWN.value)),
        model=fields.get("model", Field.text, ""),
        uuid=fields.get("uuid", Field.text, ""),
        exclusive=fields.get("exclusive", Field.flag, False),
    )


def _location(field: Field) -> Location:
    fields = field.fields(("accept", "reject"))

    def places(one: Field) -> tuple[Place, ...]:
        return tuple(map(read_place, one.items(_MOST_PLACES)))

    return Location(accept=fields.get("accept", places, ()), reject=fields.get("reject", places, ()))


def _ports(field: Field) -> PortDemand:
    fields = field.fields(("static", "dynamic"))
    static = [(one, one.whole(1, 65535)) for one in fields["static"].items(MAX_PORTS)] if "static" in fields else []
    seen: set[int] = set()
    for one, port in static:
        if port in seen:
            one.fail(f"duplicate port {port}", "keep one of them")
        seen.add(port)
    demand = PortDemand(
        static=tuple(port for _, port in static),
        dynamic=fields.get("dynamic", lambda one: one.whole(0, MAX_PORTS), 0),
    )
    if count_ports(demand) > MAX_PORTS:
        field.fail(f"requests {count_ports(demand)} ports", f"request at most {MAX_PORTS}")
    return demand


def _requirements(field: Field) -> GeneralRequirements:
    fields = field.fields(("privileged_docker",))
    return GeneralRequirements(privileged_docker=fields.get("privileged_docker", Field.flag, False))


def _excluded(field: Field) -> tuple[str, ...]:
    return tuple(map(read_peer_id, field.items(_MOST_EXCLUDED)))


def _check_nodes(ensemble: EnsembleFile, entries: list[Field]) -> None:
    """Refuse nodes that contradict each other or the ensemble."""
    known: set[str] = set()
    pinned: dict[str, str] = {}
    ports = 0
    for node, entry in zip(ensemble.nodes, entries, strict=True):
        if node.node_id in known:
            entry.fail(f"duplicate node_id {node.node_id}", "give each node its own node_id")
        known.add(node.node_id)
        ports += count_ports(node.public_ports)
        if ports > MAX_PORTS:
            entry.fail(f"the nodes up to this one request {ports} ports", f"request at most {MAX_PORTS} in all")
        peer = ensemble.pins.get(node.node_id)
        if peer is None:
            continue
        if peer in ensemble.peer_exclusion:
            entry.fail(f"its peer {peer} is in peer_exclusion", "remove it from one of them")
        if ensemble.different_peers and peer in pinned:
            entry.fail(
                f"it has the same peer as {pinned[peer]}, but different_peers is true",
                "pin one of them to another peer",
            )
        pinned[peer] = node.node_id


def _check_message(ensemble: EnsembleFile, root: Field) -> None:
    """Refuse a request that no provider would accept, because here the error can name the position."""
    request = ensemble.asked(deadline=0.0, nonce=2**53)
    try:
        from_map(to_map(request), EnsembleRequest)
    except MessageError as error:
        root.fail(f"invalid request: {error.message}", "correct the field")
    size = len(to_bytes(BidRequest(ensemble=to_map(request)))) + _ENVELOPE_BYTES
    most = ServiceLimits().frame_bytes
    if size > most:
        root.fail(f"the request has {size} bytes, more than {most}", "split the ensemble")
