"""The demand of a job: an ensemble file, or options for one node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dms_protocols.messages.bid import Location, NodeRequest, Place
from dms_resources.demands import CPUDemand, Demand, DiskDemand, GPUDemand, PortDemand, RAMDemand
from dms_resources.units import Cores

if TYPE_CHECKING:
    from ...config.ensemble import EnsembleFile

__all__ = ["FileOption", "asked_ensemble", "asked_node", "ensemble_file"]

FileOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("-f", "--file", metavar="FILE", help="An ensemble file, instead of the options for one node."),
]


def asked_ensemble(
    file: Path | None,
    *,
    cpu: Cores | None,
    ram: int | None,
    disk: int | None,
    gpu: list[GPUDemand] | None,
    port: list[int] | None,
    ports: int,
    executor: list[str] | None,
    location: list[Place] | None,
    not_location: list[Place] | None,
) -> EnsembleFile:
    """The ensemble of a file, or one node from the options. The job does not need amounts that are left out.

    Raises BadParameter if there is neither or both, and DocumentError for an invalid file.
    """
    from ...config.ensemble import EnsembleFile

    given = (cpu, ram, disk, gpu, port, ports or None, executor, location, not_location)
    ensemble = ensemble_file(file, *given)
    if ensemble is not None:
        return ensemble
    if all(one is None for one in given):
        raise typer.BadParameter("give the demand: --cpu, --ram, --disk, --gpu, or -f with an ensemble file")
    demand = Demand(
        cpu=CPUDemand(cores=cpu or Cores(0)),
        ram=RAMDemand(size=ram or 0),
        disk=DiskDemand(size=disk or 0),
        gpus=tuple(gpu or ()),
    )
    node = asked_node(demand, PortDemand(static=tuple(port or ()), dynamic=ports), executor, location, not_location)
    return EnsembleFile(nodes=(node,))


def ensemble_file(file: Path | None, *given: object) -> EnsembleFile | None:
    """The ensemble of a file, None without one. `given` are the values of the options that the file replaces.

    Raises BadParameter if one of these is given too, and DocumentError for an invalid file.
    """
    from ...config.ensemble import read_ensemble_file

    if file is None:
        return None
    if any(one is not None for one in given):
        raise typer.BadParameter("-f has the whole demand: leave the other demand options out")
    return read_ensemble_file(file)


def asked_node(
    demand: Demand,
    ports: PortDemand,
    executors: list[str] | None,
    accept: list[Place] | None,
    reject: list[Place] | None,
) -> NodeRequest:
    """One node. Raises BadParameter for a request that no provider would accept."""
    try:
        return NodeRequest(
            node_id="node",
            resources=demand,
            public_ports=ports,
            executors=tuple(executors or ()),
            location=Location(accept=tuple(accept or ()), reject=tuple(reject or ())),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
