"""Each table of the owner's commands at 80 columns, as a golden file.

`DMS_WRITE_GOLDEN=1 pytest tests/peer/cli/tables/test_golden.py` rewrites the files. Review the changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from dms_peer.cli.tables import machine, owner, status
from dms_peer.owner.messages import (
    AuditAnswer,
    DrainAnswer,
    EvictAnswer,
    ExecutorStatus,
    HistoryAnswer,
    HistoryRow,
    LeaseJobStatus,
    LeaseUse,
    OnboardAnswer,
    StatusAnswer,
    TermsSummary,
)  # fmt: skip
from dms_protocols.messages.job import JobExit
from dms_resources.components import (
    CPU,
    GPU,
    RAM,
    Disk,
    FreeResources,
    MachineResources,
    NetworkInfo,
    NetworkInterface,
    OnboardedResources,
    Resources,
)  # fmt: skip
from dms_resources.demands import CPUDemand, Demand
from dms_resources.ledger.history import Finding
from dms_resources.ledger.leases import EndedLease, EndReason, Lease, LeaseJob, LeaseState, Price
from dms_resources.units import GIB, MIB, Cores

NOW = 1_767_225_600.0
GOLDEN = Path(__file__).parent / "golden"
ALICE, BOB = (
    "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG",
    "12D3KooWB8z86EnYrGNsx9DBCapLnNz5btQxvSFttsbFVTWifiCp",
)
GPU_A = GPU(index=0, uuid="GPU-6f2a51c4-0d0e", model="Example 24", vram=24 * GIB, driver_version="570.86")


def amounts(cores: float, ram: int, disk: int, vram: int = 0) -> Resources:
    gpus = (GPU(index=0, uuid=GPU_A.uuid, model=GPU_A.model, vram=vram),) if vram else ()
    return Resources(cpu=CPU(cores=Cores.of(cores)), ram=RAM(size=ram), disk=Disk(size=disk), gpus=gpus)


def lease(
    lease_id: str, holder: str, state: LeaseState, ends: float | None, has: Resources, price: int,
    purpose: tuple[str, str] = ("", ""),
) -> Lease:  # fmt: skip
    return Lease(
        lease_id=lease_id, holder=holder, state=state, demand=Demand(cpu=CPUDemand(cores=has.cpu.cores)), resources=has,
        fence=7, created=NOW - 5400, deadline=None if ends is None else NOW + ends,
        price=Price(micros_per_hour=price, currency="EUR") if price else None,
        ensemble_id=purpose[0], node_id=purpose[1],
    )  # fmt: skip


LEASES = (
    lease(
        "3f2a91c0" * 4,
        ALICE,
        LeaseState.ALLOCATED,
        840,
        amounts(4, 16 * GIB, 100 * GIB, 20 * GIB),
        250_000,
        ("nightly", "trainer"),
    ),
    lease(
        "b81d07ee" * 4,
        BOB,
        LeaseState.COMMITTED,
        45,
        amounts(0.5, 512 * MIB, 0),
        0,
        ("an-ensemble-with-a-name-that-fills-the-screen" * 2, "worker"),
    ),
    lease("training", "local", LeaseState.ALLOCATED, None, amounts(1, 2 * GIB, GIB), 0),
)
ENDING = replace(
    lease("c41e7a90" * 4, BOB, LeaseState.ENDING, None, amounts(2, 4 * GIB, GIB, 2 * GIB), 0),
    job=LeaseJob(digest="ab" * 32),
    ended=EndedLease(
        lease_id="c41e7a90" * 4, holder=BOB, state=LeaseState.ALLOCATED, fence=7, reason=EndReason.EVICTED,
        ended=NOW - 20,
    ),
)  # fmt: skip
EXITED = replace(LEASES[0], job=LeaseJob(digest="cd" * 32, gone=True))
OFFERED = amounts(12, 48 * GIB, 400 * GIB, 22 * GIB)
FREE = FreeResources(
    cpu=CPU(cores=Cores.of(6.5)), ram=RAM(size=29 * GIB), disk=Disk(size=299 * GIB),
    gpus=(GPU(index=0, uuid=GPU_A.uuid, model=GPU_A.model, vram=2 * GIB),), ports=900, onboarded=True, draining=False,
    simulated=False,
)  # fmt: skip
ONBOARDED = OnboardedResources(cpu=OFFERED.cpu, ram=OFFERED.ram, disk=OFFERED.disk, gpus=OFFERED.gpus)
STATUS = StatusAnswer(
    peer_id=ALICE, addrs=(f"/ip4/192.0.2.7/tcp/4001/p2p/{ALICE}",), running=True, simulated=False, draining=True,
    onboarded=ONBOARDED, free=FREE, committed=amounts(0.5, 512 * MIB, 0), allocated=amounts(5, 18 * GIB, 101 * GIB),
    leases=LEASES, lease_count=3, usage=amounts(3.2, 20 * GIB, 210 * GIB), usage_age=3.0,
    lease_use=(LeaseUse(lease_id=LEASES[0].lease_id, cores=Cores.of(2.75), ram=11 * GIB),),
    terms=TermsSummary(currency="EUR", micros_per_hour={"core": 40_000}, location=("Europe", "DE"), executors=()),
    refusals={"resources": 12, "executor": 1}, version="1.2.3",
    drain_deadline=NOW + 5400,
)  # fmt: skip
TABLES: dict[str, Callable[[], None]] = {
    "status": lambda: status.show_status(STATUS),
    "status_with_jobs": lambda: status.show_status(
        replace(
            STATUS, leases=(EXITED, ENDING, LEASES[2]), terms=None, refusals={},
            executors=(
                ExecutorStatus(name="batch", works=False, problem="/opt/run is not an executable file"),
                ExecutorStatus(
                    name="docker", works=True, version="podman 5.4.2", notes=("The disk of jobs is not limited here.",)
                ),
            ),
            jobs=(
                LeaseJobStatus(
                    lease_id=EXITED.lease_id, executor="docker", state="exited", since=NOW - 60,
                    exit=JobExit(kind="memory", oom_kills=1),
                ),
                LeaseJobStatus(lease_id=ENDING.lease_id, executor="docker", state="ending", since=NOW - 20),
                LeaseJobStatus(lease_id="training", executor="docker", state="running", since=NOW - 3600),
            ),
            lease_use=(
                LeaseUse(
                    lease_id=ENDING.lease_id, cores=Cores.of(2.4), ram=5 * GIB, vram={GPU_A.uuid: 3 * GIB},
                ),
                LeaseUse(lease_id="training", cores=Cores.of(1.05), ram=2 * GIB),
            ),
        )
    ),
    "drain_with_jobs": lambda: owner.show_drain(DrainAnswer(leases=3, evicted=3, running=True, ending=2)),
    "eviction_with_jobs": lambda: owner.show_eviction(
        EvictAnswer(ended=(ENDING.ended,), noticed=(), ending=(ENDING.lease_id,))  # type: ignore[arg-type]
    ),
    "offer": lambda: owner.show_offer(OnboardAnswer(onboarded=ONBOARDED, free=FREE, simulated=False)),
    "history": lambda: owner.show_history(
        HistoryAnswer(
            entries=(
                HistoryRow(
                    number=42, at=NOW, actor="owner", action="end", lease_id=LEASES[0].lease_id, reason="evicted",
                    detail="maintenance of the power supply on Monday morning",
                ),
                HistoryRow(number=41, at=NOW - 60, actor=BOB, action="commit", lease_id=LEASES[1].lease_id),
                HistoryRow(number=1, at=NOW - 9000, actor="owner", action="onboard", detail="12 cores, 48 GiB RAM"),
            )
        )
    ),
    "audit": lambda: owner.show_audit(
        AuditAnswer(
            findings=(
                Finding(
                    code="process_gone", lease_id=LEASES[0].lease_id,
                    message=f"the processes of allocation {LEASES[0].lease_id} have ended", repairable=True,
                ),
                Finding(code="vram_in_use", message="GPU 0: 3 GiB are used beyond what is promised"),
            ),
            repaired=False,
        )
    ),
    "audit_that_repairs_nothing": lambda: owner.show_audit(
        AuditAnswer(
            findings=(Finding(code="oversold", message="CPU: 8 cores promised, 4 cores offered: offer more"),),
            repaired=True,
        )
    ),
    "audit_of_what_cannot_be_repaired": lambda: owner.show_audit(
        AuditAnswer(
            findings=(Finding(code="oversold", message="CPU: 8 cores promised, 4 cores offered: offer more"),),
            repaired=False,
        )
    ),
    "eviction": lambda: owner.show_eviction(
        EvictAnswer(
            ended=(
                EndedLease(
                    lease_id=LEASES[1].lease_id, holder=BOB, state=LeaseState.COMMITTED, fence=7,
                    reason=EndReason.EVICTED, ended=NOW,
                ),
            ),
            noticed=LEASES[:1],
        )
    ),
    "hardware": lambda: machine.show_hardware(
        MachineResources(
            cpu=CPU(
                cores=Cores.of(16), model="Example Processor 9000 with Integrated Graphics", vendor="ExampleVendor",
                threads=32, physical_cores=16, clock_speed=3_400_000_000, cache_size=64 * MIB, architecture="x86_64",
            ),
            ram=RAM(size=64 * GIB, type="DDR5"),
            disk=Disk(size=900 * GIB, model="Example SSD 990", type="NVMe", interface="nvme"),
            gpus=(GPU_A,),
            network=NetworkInfo(
                interfaces=(NetworkInterface(name="eth0", type="ethernet", link_speed=10**10, up=True),)
            ),
            limits=("16 of 32 cores: cgroup quota of /job",),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_at_80_columns(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("time.time", lambda: NOW)
    # The history has local times.
    monkeypatch.setattr("dms_peer.cli.tables.owner.local_time", lambda at: f"2026-01-01 00:00:{at % 60:02.0f} UTC")
    TABLES[name]()
    shown = capsys.readouterr().out
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("DMS_WRITE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")
    # An address has to be copied as a whole.
    assert all(len(line) <= 80 or "/p2p/" in line or line.startswith("peer ") for line in shown.splitlines())
