"""The devices and the reports of a vendor's probe."""

from __future__ import annotations

from msgspec import Struct

from ....components import GPU, Amount

__all__ = ["GPUDevice", "GPUReport"]


class GPUDevice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One device, with the bytes of VRAM that are `used` on it now.

    `position` is the driver's number of it ("0"; "0:1" for the second MIG device of the first GPU), and `parent_uuid`
    the GPU to which a MIG device belongs. `physical` is the size of all its memory in bytes, as the driver reports it.
    `parts` is the number of equal parts (tiles) that a runtime can show separately.
    """

    gpu: GPU
    used: Amount = 0
    position: str = ""
    parent_uuid: str = ""
    physical: Amount = 0
    parts: int = 1


class GPUReport(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The devices found, and sentences: `notes` on missing devices, `limits`, and `problems` on failures.

    If `failed` is true, the library as a whole failed. Then an empty list of devices has no meaning.
    """

    devices: tuple[GPUDevice, ...] = ()
    listed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    failed: bool = False

    @classmethod
    def failure(cls, problem: str) -> GPUReport:
        """The report of a library that could not be queried."""
        return cls(problems=(problem,), failed=True)

    def __add__(self, other: GPUReport) -> GPUReport:
        return GPUReport(
            devices=self.devices + other.devices,
            listed=self.listed + other.listed,
            notes=self.notes + other.notes,
            limits=self.limits + other.limits,
            problems=self.problems + other.problems,
            failed=self.failed or other.failed,
        )
