"""The network of a job that may reach public addresses and nothing else: one bridge for each job, behind a filter.

The filter is a table of nftables of our own. It holds for every bridge whose name begins as ours do, so it is in force
before such a bridge is made. It takes a rootful engine, and a peer that is root. Elsewhere `outbound` is not offered.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from dms_resources.machine.hardware.roots import read_text

from ..executor import ExecutorError
from .create_body import LABEL
from .engine import Engine

__all__ = ["BRIDGE_PREFIX", "JobNetworks", "filter_rules", "find_nft", "resolvers"]

BRIDGE_PREFIX: Final = "dmso"
"""How the names of our bridges begin. A name has at most 15 characters."""

_TABLE: Final = "dms_jobs"
_RESOLVER_FILES: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_SECONDS: Final = 10.0
_GONE: Final = 404
# What is not on the public internet, and what gives away the machine: metadata services are link-local.
_CLOSED: Final = (
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, "
    "192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0-255.255.255.255"
)


def find_nft() -> str:
    """The path of nft; "" where there is none. Blocks."""
    return shutil.which("nft", path=f"{os.defpath}:/usr/sbin:/sbin:/usr/local/sbin") or ""


def resolvers() -> list[str]:
    """The IPv4 addresses of the machine's resolvers, loopback ones left out. Blocks."""
    found: dict[str, None] = {}
    for file in _RESOLVER_FILES:
        for line in (read_text(file) or "").splitlines():
            words = line.split()
            if len(words) == 2 and words[0] == "nameserver":
                try:
                    address = ipaddress.IPv4Address(words[1])
                except ValueError:
                    continue
                if not address.is_loopback:
                    found[str(address)] = None
    return list(found)


def filter_rules(names: list[str]) -> str:
    """The rules, as nft reads them: the whole table is made anew in one step. `names` are the resolvers' addresses."""
    allowed = "\n".join(f"    ip daddr {name} meta l4proto {{ tcp, udp }} th dport 53 return" for name in names)
    return f"""
table inet {_TABLE}
delete table inet {_TABLE}
table inet {_TABLE} {{
  chain outbound {{
    ct state established,related return
{allowed}
    meta nfproto ipv6 reject
    ip daddr {{ {_CLOSED} }} reject
    tcp dport 25 reject with tcp reset
  }}
  chain machine {{
    ct state established,related return
{allowed}
    reject
  }}
  chain forward {{
    type filter hook forward priority -5; policy accept;
    iifname "{BRIDGE_PREFIX}*" jump outbound
  }}
  chain input {{
    type filter hook input priority -5; policy accept;
    iifname "{BRIDGE_PREFIX}*" jump machine
  }}
}}
"""


class JobNetworks:
    """Makes and removes the networks of jobs in one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def set_filter(self) -> None:
        """Puts the rules in force. Blocks. Raises ExecutorError `failed`."""
        nft = find_nft()
        if not nft:
            raise ExecutorError("nft is not installed", code="failed", hint="apt-get install nftables")
        try:
            done = subprocess.run(
                [nft, "-f", "-"],
                input=filter_rules(resolvers()).encode(),
                capture_output=True,
                timeout=_SECONDS,
                env={"PATH": os.defpath},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExecutorError(f"the filter cannot be set: {error}", code="failed") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0][:300]
            raise ExecutorError(f"the filter cannot be set: {said}", code="failed")

    async def make(self, name: str, podman: bool) -> None:
        """Makes the network of a job, unless it is there. Raises ExecutorError `failed` or `unavailable`."""
        bridge = BRIDGE_PREFIX + hashlib.sha256(name.encode()).hexdigest()[:10]
        body: dict[str, Any]
        if podman:
            # Its version of Docker's request has no name for the bridge.
            path = "/v4.0.0/libpod/networks/create"
            body = {"name": name, "driver": "bridge", "network_interface": bridge, "labels": {f"{LABEL}v": "1"}}
            answer = await self._engine.look(path, method="POST", content=body)
        else:
            options = {"com.docker.network.bridge.name": bridge}
            body = {"Name": name, "Driver": "bridge", "CheckDuplicate": True, "Options": options}
            body["Labels"] = {f"{LABEL}v": "1"}
            answer = await self._engine.call("POST", "/networks/create", content=body)
        if not answer.succeeded and not await self._is_there(name):
            raise ExecutorError(f"the engine cannot make a network: {answer.message}", code="failed")

    async def _is_there(self, name: str) -> bool:
        return (await self._engine.call("GET", f"/networks/{name}")).succeeded

    async def remove(self, name: str) -> bool:
        """Removes the network of a job; whether it is gone. Raises ExecutorError `unavailable`."""
        answer = await self._engine.call("DELETE", f"/networks/{name}")
        return answer.succeeded or answer.status == _GONE or not await self._is_there(name)
