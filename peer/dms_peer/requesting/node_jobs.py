"""The job of one node of an ensemble, before the node has a lease."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from dms_protocols.messages.job import Job, JobPort
from dms_resources.components import Port

__all__ = ["NodeJob"]


class NodeJob(Struct, frozen=True, kw_only=True):
    """The job of one node of an ensemble. Its `dynamic` ports are published at ports that the provider chooses."""

    job: Job
    dynamic: tuple[Port, ...] = ()

    def document(self, leased: tuple[Port, ...]) -> Job:
        """The job document for a lease with these ports. Raises ValueError if the lease has too few."""
        taken = {port.public for port in self.job.ports}
        free = [port for port in leased if port not in taken]
        if len(free) < len(self.dynamic):
            raise ValueError(f"the lease has {len(free)} ports for {len(self.dynamic)}")
        dynamic = tuple(
            JobPort(private=private, public=public) for private, public in zip(self.dynamic, free, strict=False)
        )
        return replace(self.job, ports=(*self.job.ports, *dynamic))
