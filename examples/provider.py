"""Offers a part of this machine in a few lines, without the command line.

    python examples/provider.py [HOME]

prints an address for requester.py and answers until Ctrl-C. HOME keeps the key and the ledger.
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
    """Offers one core, one GiB of RAM and one of disk, until a signal comes."""
    identity = load_or_create_identity(home / "key")
    # Reads files and asks GPU drivers: in a thread, as everything that may take its time.
    machine = await trio.to_thread.run_sync(measure_machine, home)
    offer = OnboardedResources(cpu=CPU(cores=Cores.of(1)), ram=RAM(size=GIB), disk=Disk(size=GIB), gpus=())
    async with (
        # The ledger: what is promised to whom survives whatever happens to this process.
        open_manager(home / "ledger.db", machine) as manager,
        open_host(identity, ["/ip4/127.0.0.1/tcp/0"]) as host,
        serve(host, manager, identity=identity),
    ):
        await manager.update_onboarded_resources(offer)
        print(host_addresses(host)[0], flush=True)
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await anext(signals)


def main() -> None:
    """Uses the home that was named, or one that is gone afterwards."""
    if len(sys.argv) > 1:
        home = Path(sys.argv[1])
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        trio.run(provide, home)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            trio.run(provide, Path(temporary))


if __name__ == "__main__":
    main()
