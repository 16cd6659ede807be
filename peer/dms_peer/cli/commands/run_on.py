"""dms-peer run-on"""

from __future__ import annotations

from typing import Annotated

import typer

from dms_resources.demands import CPUDemand, Demand, DiskDemand, PortDemand, RAMDemand
from dms_resources.units import GIB, Cores

from ..options.common import (
    AddressArgument,
    DebugOption,
    GPUDemandOption,
    HomeOption,
    JSONOption,
    OptionalCPU,
    OptionalDisk,
    OptionalRAM,
    TokenOption,
    home_at,
    time_to_live,
)
from ..options.demand import asked_node

__all__ = ["run_on"]


def run_on(
    address: AddressArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND ...", help="The command, and its words.")
    ] = None,
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="The image that the command runs in.", show_default="none")
    ] = "",
    executor: Annotated[
        str, typer.Option("--executor", metavar="NAME", help="The provider's executor that runs it.")
    ] = "docker",
    env: Annotated[
        list[str] | None,
        typer.Option("-e", "--env", metavar="NAME=VALUE", help="An environment variable (repeatable)."),
    ] = None,
    cpu: OptionalCPU = None,
    ram: OptionalRAM = None,
    disk: OptionalDisk = None,
    gpu: GPUDemandOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", parser=time_to_live, metavar="TIME", help="Longest time to get the node.")
    ] = 30.0,
    token: TokenOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> int:
    """Run one command at a peer, show its output, and end with its exit code.

    Takes 1 core, 1 GiB of RAM and 1 GiB of disk, unless --cpu, --ram and --disk say otherwise. Ctrl-C stops the command
    and releases the lease. Ends with 3 when the peer refuses.
    Example: dms-peer run-on 12D3KooWKT4R3MXs --image alpine:3.20 -- uname -a
    """
    from dms_protocols.messages.job import Execution, Job

    from ...config.ensemble import EnsembleFile
    from ...discovery.settings import DiscoverySettings
    from ...requesting.node_jobs import NodeJob
    from ..peer_names import find_peer
    from .deploy import run_deployment

    if not command and not image:
        raise typer.BadParameter("give a command after --, or an --image that has one")
    demand = Demand(
        cpu=CPUDemand(cores=cpu or Cores.of(1)),
        ram=RAMDemand(size=ram or GIB),
        disk=DiskDemand(size=disk or GIB),
        gpus=tuple(gpu or ()),
    )
    try:
        job = Job(
            execution=Execution(type=executor, image=image, cmd=tuple(command or ()), environment=tuple(env or ()))
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    node = asked_node(demand, PortDemand(), [executor], None, None)
    place = home_at(home)
    peer = find_peer(place, address)
    ensemble = EnsembleFile(nodes=(node,), pins={node.node_id: peer.peer_id}, jobs={node.node_id: NodeJob(job=job)})
    # This peer alone is asked: at its address, or where it was known before.
    settings = DiscoverySettings(bootstrap=peer.addrs, mdns=not peer.addrs, dht=not peer.addrs, gossip=False)
    return run_deployment(
        as_json, [node.node_id], place, settings, ensemble,
        strategy="cheapest", currency="", ttl=60.0, timeout=timeout, wait=False, detach=False, remove=False,
        token=token,
    )  # fmt: skip
