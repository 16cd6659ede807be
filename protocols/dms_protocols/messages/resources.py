"""`/dms/resources/1.0.0`: the hardware, the offer, the promises and the free capacity of a peer.

The answers are the types of `dms_resources.components` themselves.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["AllocatedRequest", "FreeRequest", "MachineRequest", "OnboardedRequest", "UsageRequest", "WatchRequest"]


class FreeRequest(Struct, frozen=True, tag_field="op", tag="free"):
    """Requests what is free now; answered with FreeResources."""


class OnboardedRequest(Struct, frozen=True, tag_field="op", tag="onboarded"):
    """Requests what the owner offers; answered with OnboardedResources, or `not_onboarded`."""


class AllocatedRequest(Struct, frozen=True, tag_field="op", tag="allocated"):
    """Requests the sum of all allocations; answered with Resources."""


class MachineRequest(Struct, frozen=True, tag_field="op", tag="machine"):
    """Requests the hardware; answered with MachineResources, for other peers without network addresses."""


class UsageRequest(Struct, frozen=True, tag_field="op", tag="usage"):
    """Requests what the machine uses now; answered with Resources, or `usage_unknown`."""


class WatchRequest(Struct, frozen=True, tag_field="op", tag="watch"):
    """Requests FreeResources now and after every change, as events; a slow reader gets the newest."""
