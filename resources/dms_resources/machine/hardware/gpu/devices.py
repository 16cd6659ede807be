"""What a probe of one vendor's GPUs reports."""

from __future__ import annotations

from msgspec import Struct

from ....components import GPU, Amount

__all__ = ["GPUDevice", "GPUReport"]


class GPUDevice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device with the bytes of VRAM `used` on it now.

    `position` is the driver's number of it ("0"; "0:1" for the second MIG device of the first GPU), `parent_uuid` the
    GPU that a MIG device is a part of. `physical` is the size that the driver reports for all of its memory, in bytes,
    `parts` the number of equal parts (tiles) that a runtime can show alone.
    """

    gpu: GPU
    used: Amount = 0
    position: str = ""
    parent_uuid: str = ""
    physical: Amount = 0
    parts: int = 1


class GPUReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Devices found, and sentences: `notes` on what is not there, `limits`, and `problems` on what failed.

    `failed` says that the library as a whole failed. An empty list of devices then means nothing.
    """

    devices: tuple[GPUDevice, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    failed: bool = False

    @classmethod
    def failure(cls, problem: str) -> GPUReport:
        """The report of a library that could not be asked."""
        return cls(problems=(problem,), failed=True)

    def __add__(self, other: GPUReport) -> GPUReport:
        return GPUReport(
            devices=self.devices + other.devices,
            notes=self.notes + other.notes,
            limits=self.limits + other.limits,
            problems=self.problems + other.problems,
            failed=self.failed or other.failed,
        )
