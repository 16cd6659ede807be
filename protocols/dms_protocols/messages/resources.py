"""`/dms/resources/1.0.0`: the hardware, the onboarded, the allocated and the free resources of a peer.

The answers are the types of `dms_resources.components`.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["AllocatedRequest", "FreeRequest", "MachineRequest", "OnboardedRequest", "UsageRequest", "WatchRequest"]


class FreeRequest(Struct, frozen=True, tag_field="op", tag="free"):
    """Requests what is free now. The answer is FreeResources."""


class OnboardedRequest(Struct, frozen=True, tag_field="op", tag="onboarded"):
    """Requests what the owner offers. The answer is OnboardedResources, or the error `not_onboarded`."""


class AllocatedRequest(Struct, frozen=True, tag_field="op", tag="allocated"):
    """Requests the sum of all allocations. The answer is Resources."""


class MachineRequest(Struct, frozen=True, tag_field="op", tag="machine"):
    """Requests the hardware. The answer is MachineResources; for other peers it has no network addresses."""


class UsageRequest(Struct, frozen=True, tag_field="op", tag="usage"):
    """Requests what the machine uses now. The answer is Resources, or the error `usage_unknown`."""


class WatchRequest(Struct, frozen=True, tag_field="op", tag="watch"):
    """Requests FreeResources now and after every change, as events; a slow reader gets the newest."""
