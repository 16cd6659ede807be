"""Offer a part of this machine from Python.

    python examples/provider.py [HOME]

prints an address for requester.py and serves requests until Ctrl-C. HOME holds the key and the ledger.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

import trio

from dms_peer import host_addresses, load_or_create_identity, open_host, serve
from dms_resources import CPU, GIB, RAM, Cores, Disk, OnboardedResources, measure_machine, open_manager


async def provide(home: Path) -> None:
    """Offer 1 core, 1 GiB of RAM and 1 GiB of disk until SIGINT or SIGTERM."""
    identity = load_or_create_identity(home / "key")
    # Measuring reads files and calls GPU drivers. It runs in a thread because it may block.
    machine = await trio.to_thread.run_sync(measure_machine, home)
    offer = OnboardedResources(cpu=CPU(cores=Cores.of(1)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
    async with (
        # The ledger survives a crash of this process.
        open_manager(home / "ledger.db", machine) as manager,
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host,
        serve(host, manager, identity=identity),
    ):
        await manager.update_onboarded_resources(offer)
        print(host_addresses(host)[0], flush=True)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await anext(signals)


def main() -> None:
    """Use the given home, or a temporary one."""
    if len(sys.argv) > 1:
        home = Path(sys.argv[1])
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        trio.run(provide, home)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            trio.run(provide, Path(temporary))


if __name__ == "__main__":
    main()
