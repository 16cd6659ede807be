"""The commented example that `dms-peer config init` writes. Uncommented, it is valid too."""

from __future__ import annotations

from typing import Final

__all__ = ["EXAMPLE"]

EXAMPLE: Final = """\
# The configuration of `dms-peer run`. Every line is a comment: remove the `#` of what you want to change.
# Options of the command line override this file; so do environment variables, such as DMS_PEER_LISTEN for --listen.
# Check it with `dms-peer config check`; see what is in force with `dms-peer config show`.

# Where to listen. Without it: all IPv4 and IPv6 addresses, on a free port that is kept for the next start.
#listen: [/ip4/0.0.0.0/tcp/4001]

# Addresses under which others reach this peer and that the machine does not have, such as a forwarded port of a router
# or a published port of a container. Others are told these first.
#announce: [/dns4/node.example.org/tcp/4001]

# What to do when the ledger has free capacity but the machine does not: enforce refuses what memory, disk or VRAM lacks
# now, warn refuses only what the disk lacks, off refuses nothing. A busy CPU is only warned about.
#guard: enforce

# Time between samples of the machine's use.
#sample_interval: 5s

# Run also if the peers of other homes on this machine and this one offer more together than it has (docs/hardware.md).
#share_machine: false

# How the peer finds others and is found.
#discovery:
#  bootstrap: []
#  known: true
#  exchange: true
#  mdns: true
#  dht: true
#  gossip: false

# Prices, location, executors and policies (docs/policies.md). A file of its own: `terms: terms.yaml`.
#terms:
#  location: {continent: Europe, country: DE}
#  executors: [docker]
#  valid_seconds: 5m
#  prices: {currency: EUR, core: 0.01, ram_gib: 0.002}

# Which peers may call what, and what each may use (docs/access.md). A file of its own: `access: access.yaml`.
#access:
#  operations: {machine: nobody}
#  others: anyone
#  shares:
#    peer: {capacity: 250, longest_ttl: 12h}

# Limits of the host, streams, connections, gossip and relay (docs/limits.md). A file of its own: `limits: limits.yaml`.
#limits:
#  host: {max_inbound_connections: 128}

# What runs jobs on leases (docs/executors.md). Without it, leases carry no jobs.
#executors:
#  docker:
#    socket: /run/podman/podman.sock
#    images: ["docker.io/library/python:*"]
#    networks: [none, outbound]

# How long an allocation lasts without a sign of life of its holder, and at most; `never` ends none for that reason.
#allocations:
#  keep_alive: 15m
#  longest: never

# Metrics for Prometheus (docs/operating.md); on loopback unless a host is named.
#metrics:
#  address: 127.0.0.1:9464

#logs:
#  level: warning
#  json: false

# Which peers may connect, and relays (docs/operating.md). Without an allow list, every peer may.
#network:
#  allow_peers: []
#  deny_peers: []
#  allow_addresses: []
#  deny_addresses: [192.0.2.0/24]
#  relay: false
#  reserve_at: []
"""
