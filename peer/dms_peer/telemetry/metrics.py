"""The metrics of a running peer, for Prometheus.

All numbers are read from memory when they are fetched; a request only increments counters. Names follow the conventions
of Prometheus: base units (bytes, seconds, cores), and `_total` for counters. Labels come from this program's own code
(operations, codes, states), never from what a peer sends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dms_protocols.messages.job import JobState, JobStatus
from dms_protocols.rpc.counts import ServiceCounts
from dms_resources.components import FreeResources, OnboardedResources
from dms_resources.ledger.leases import LeaseState
from dms_resources.ledger.metrics import WRITE_BUCKETS, LedgerMetrics
from dms_resources.manager import ResourceManager

if TYPE_CHECKING:
    from dms_resources.machine.sampling import UsageSample

__all__ = ["PeerCollector"]


class PeerCollector(Collector):
    """Collects the metrics of a manager, its services (`counts`), the host (`connections`, `limits_hit`) and `jobs`.

    `version` is the version of this program.
    """

    def __init__(
        self,
        manager: ResourceManager,
        counts: ServiceCounts,
        *,
        connections: Callable[[], int],
        limits_hit: Mapping[str, int],
        version: str,
        jobs: Callable[[], Iterable[JobStatus]] = list,
    ) -> None:
        self._manager = manager
        self._counts = counts
        self._connections = connections
        self._limits_hit = limits_hit
        self._version = version
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        """The current metrics."""
        yield InfoMetricFamily("dms_build", "The version of dms-peer.", {"version": self._version})
        yield from _requests(self._counts)
        yield from _ledger(self._manager.metrics, self._manager.waiting_changes)
        yield from _capacity(self._manager.get_onboarded_resources(), self._manager.get_free_resources())
        yield _by_label(
            GaugeMetricFamily("dms_leases", "Current leases, by state.", labels=["state"]),
            ((state.value, self._manager.lease_counts[state]) for state in LeaseState),
        )
        yield from _job_metrics(self._jobs(), self._manager.usage_sample)
        yield GaugeMetricFamily("dms_connections", "Open connections to other peers.", self._connections())
        yield _by_label(
            CounterMetricFamily("dms_limits_hit", "How often a limit of the host was hit.", labels=["limit"]),
            self._limits_hit.items(),
        )
        yield GaugeMetricFamily("dms_draining", "Whether the peer takes no new leases.", float(self._manager.draining))
        yield GaugeMetricFamily(
            "dms_storage_failed",
            "Whether the ledger cannot be written.",
            float(self._manager.storage_error is not None),
        )
        sample = self._manager.usage_sample
        if sample is not None:
            yield GaugeMetricFamily(
                "dms_usage_sample_age_seconds", "Age of the newest sample of the machine's use.", sample.age
            )


def _job_metrics(jobs: Iterable[JobStatus], sample: UsageSample | None) -> Iterator[Metric]:
    known = list(jobs)
    states = Counter(job.state for job in known)
    yield _by_label(
        GaugeMetricFamily("dms_jobs", "Known jobs, by state.", labels=["state"]),
        ((state, states[state]) for state in get_args(JobState)),
    )
    exits = Counter(job.exit.kind for job in known if job.exit is not None)
    yield _by_label(
        GaugeMetricFamily("dms_jobs_exited", "Known jobs that have exited, by how they ended.", labels=["kind"]),
        exits.items(),
    )
    if sample is not None:
        cores = sum(job.cpu.millicores for job in sample.jobs) / 1000
        yield GaugeMetricFamily("dms_jobs_used_cores", "CPU cores that followed jobs use.", cores)
        ram = sum(job.ram for job in sample.jobs)
        yield GaugeMetricFamily("dms_jobs_used_ram_bytes", "RAM that followed jobs use.", ram)


def _requests(counts: ServiceCounts) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "dms_requests",
        "Requests by operation and outcome: ok, or the code of an error.",
        labels=["operation", "outcome"],
    )
    for (operation, outcome), count in counts.requests.items():
        requests.add_metric([operation, outcome], count)
    yield requests
    yield CounterMetricFamily("dms_bids", "Signed bids.", counts.bids)
    yield _by_label(
        CounterMetricFamily("dms_refusals", "Nodes without a bid, by the code of the refusal.", labels=["code"]),
        counts.refusals.items(),
    )
    yield GaugeMetricFamily("dms_streams", "Streams that are being served.", counts.streams)


def _ledger(measures: LedgerMetrics, waiting: int) -> Iterator[Metric]:
    yield _by_label(
        CounterMetricFamily(
            "dms_ledger_changes", "Durable changes: commit, allocate, released, expired, ...", labels=["change"]
        ),
        measures.changes.items(),
    )
    total, buckets = 0, []
    for bound, count in zip([*map(str, WRITE_BUCKETS), "+Inf"], measures.writes, strict=True):
        total += count
        buckets.append((bound, float(total)))
    yield HistogramMetricFamily("dms_ledger_write_seconds", "Time of a durable write.", buckets, measures.write_seconds)
    yield CounterMetricFamily("dms_ledger_failed_writes", "Writes that failed.", measures.failed_writes)
    yield GaugeMetricFamily("dms_ledger_waiting_changes", "Changes that wait to be written to disk.", waiting)


def _capacity(onboarded: OnboardedResources | None, free: FreeResources) -> Iterator[Metric]:
    cores = GaugeMetricFamily("dms_cores", "CPU cores, onboarded and free.", labels=["kind"])
    ram = GaugeMetricFamily("dms_ram_bytes", "RAM, onboarded and free.", labels=["kind"])
    disk = GaugeMetricFamily("dms_disk_bytes", "Disk, onboarded and free.", labels=["kind"])
    vram = GaugeMetricFamily("dms_vram_bytes", "Memory of each GPU, onboarded and free.", labels=["kind", "index"])
    for kind, amount in (("onboarded", onboarded), ("free", free)):
        if amount is None:
            continue
        cores.add_metric([kind], amount.cpu.cores.millicores / 1000)
        ram.add_metric([kind], amount.ram.size)
        disk.add_metric([kind], amount.disk.size)
        for gpu in amount.gpus:
            vram.add_metric([kind, str(gpu.index)], gpu.vram)
    yield from (cores, ram, disk, vram)


def _by_label(
    family: CounterMetricFamily | GaugeMetricFamily, values: Iterable[tuple[str, float]]
) -> CounterMetricFamily | GaugeMetricFamily:
    for label, value in values:
        family.add_metric([label], value)
    return family
