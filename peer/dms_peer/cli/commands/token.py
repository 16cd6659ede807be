"""dms-peer token create | attenuate | inspect | revoke"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from dms_resources.units import Cores

from ..options.common import (
    DebugOption,
    HomeOption,
    JSONOption,
    OptionalCPU,
    OptionalDisk,
    OptionalRAM,
    duration,
    home_at,
    size,
)
from ..output import show_answer

if TYPE_CHECKING:
    from dms_protocols.tokens.grants import GrantTerms

__all__ = ["token"]

token = typer.Typer(
    help="Create, narrow, inspect and revoke tokens: grants that their holders pass on offline.",
)

TokenArgument: TypeAlias = Annotated[Path, typer.Argument(metavar="TOKEN", help="The file that holds the token.")]
GPUsOption: TypeAlias = Annotated[
    int | None, typer.Option("--gpus", min=0, metavar="NUMBER", help="Number of GPUs (any VRAM).")
]
VRAMOption: TypeAlias = Annotated[
    int | None, typer.Option("--vram", parser=size, metavar="SIZE", help="VRAM on all of them together.")
]
LeasesOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--leases", min=0, metavar="NUMBER", help="Number of commitments and allocations at a time."),
]
UntilOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="2026-11-27 (all of that day) or 2026-11-27T18:00, in local time."),
]
ForOption: TypeAlias = Annotated[
    float | None,
    typer.Option("--for", parser=duration, metavar="DURATION", help="Time until it ends, such as 12h or 7d."),
]
OperationOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--operation", metavar="NAME", help="Only for this operation, such as commit (repeatable)."),
]
PeerOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--peer", metavar="PEER_ID", help="Only for this peer to use (repeatable).")
]
ProviderOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--provider", metavar="PEER_ID", help="Only at this provider (repeatable)."),
]
OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="File to write the token to.", show_default="printed"),
]


@token.command()
def create(
    cpu: OptionalCPU = None,
    ram: OptionalRAM = None,
    disk: OptionalDisk = None,
    gpus: GPUsOption = None,
    vram: VRAMOption = None,
    leases: LeasesOption = None,
    until: UntilOption = None,
    lasting: ForOption = None,
    operation: OperationOption = None,
    peer: PeerOption = None,
    provider: ProviderOption = None,
    output: OutputOption = None,
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Grant a part of what this home's peer offers; a dimension without an option is not bounded.

    Example: dms-peer token create --cpu 4 --for 7d -o friend.token
    """
    from ..tables.tokens import show_made_token
    from ..token_files import create as make

    terms = _terms(cpu, ram, disk, gpus, vram, leases, until, lasting, operation, peer, provider)
    show_answer(as_json, show_made_token, make(home_at(home), terms, output))


@token.command()
def attenuate(
    source: TokenArgument,
    cpu: OptionalCPU = None,
    ram: OptionalRAM = None,
    disk: OptionalDisk = None,
    gpus: GPUsOption = None,
    vram: VRAMOption = None,
    leases: LeasesOption = None,
    until: UntilOption = None,
    lasting: ForOption = None,
    operation: OperationOption = None,
    peer: PeerOption = None,
    provider: ProviderOption = None,
    output: OutputOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Derive a narrower token to pass on. Needs no key and no network; terms beyond the token are refused.

    Example: dms-peer token attenuate friend.token --cpu 1 -o part.token
    """
    from ..tables.tokens import show_made_token
    from ..token_files import attenuate as cut
    from ..token_files import read_token_file

    terms = _terms(cpu, ram, disk, gpus, vram, leases, until, lasting, operation, peer, provider)
    show_answer(as_json, show_made_token, cut(read_token_file(source), terms, output))


@token.command()
def inspect(
    source: TokenArgument, home: HomeOption = None, as_json: JSONOption = False, debug: DebugOption = False
) -> None:
    """Verify a token, and show what it grants: block by block, and what is effective.

    Example: dms-peer token inspect friend.token
    """
    from ..tables.tokens import show_token
    from ..token_files import inspect as look_at
    from ..token_files import read_token_file

    show_answer(as_json, show_token, look_at(home_at(home), read_token_file(source)))


@token.command()
def revoke(
    grants: Annotated[
        list[str] | None,
        typer.Argument(metavar="GRANT_ID", help="Ids of blocks, as `token inspect` shows them."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--token", metavar="FILE", help="Revoke this token and every token derived from it."),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="A note for yourself.")] = "",
    home: HomeOption = None,
    as_json: JSONOption = False,
    debug: DebugOption = False,
) -> None:
    """Revoke grants at this home's peer, running or not; without an id, show what was revoked.

    Example: dms-peer token revoke --token friend.token
    """
    from ...owner.client import read_revocations, revoke_grants
    from ..tables.tokens import show_revocations, show_revoked
    from ..token_files import last_grant, read_token_file

    ids = list(grants or ())
    if source is not None:
        ids.append(last_grant(read_token_file(source)))
    if ids:
        show_answer(as_json, show_revoked, revoke_grants(home_at(home), tuple(ids), reason))
    else:
        show_answer(as_json, show_revocations, read_revocations(home_at(home)))


def _terms(
    cpu: Cores | None,
    ram: int | None,
    disk: int | None,
    gpus: int | None,
    vram: int | None,
    leases: int | None,
    until: str | None,
    lasting: float | None,
    operations: list[str] | None,
    peers: list[str] | None,
    providers: list[str] | None,
) -> GrantTerms:
    from dms_protocols.tokens.grants import GrantTerms
    from dms_resources.ledger.accounts import Allowance

    from ..token_files import end_of_grant, named_operations, named_peers

    if until is not None and lasting is not None:
        raise typer.BadParameter("give --until or --for, not both")
    return GrantTerms(
        operations=named_operations(operations),
        peers=named_peers(peers),
        providers=named_peers(providers),
        expires=end_of_grant(until, lasting),
        allowance=Allowance(
            millicores=None if cpu is None else cpu.millicores, ram=ram, disk=disk, gpus=gpus, vram=vram, leases=leases
        ),
    )
