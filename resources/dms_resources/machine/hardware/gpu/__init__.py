"""GPUs of every vendor. Each vendor's library is optional, and none of them can crash or block this process."""

from __future__ import annotations

from .devices import GPUDevice, GPUReport
from .inventory import number_devices, read_gpus
from .visibility import visible_devices

__all__ = ["GPUDevice", "GPUReport", "number_devices", "read_gpus", "visible_devices"]
