"""`/dms/resources/1.0.0`: what a peer has, offers, has promised and has free.

The answers are the types of `dms_resources.components` themselves.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["AllocatedRequest", "FreeRequest", "MachineRequest", "OnboardedRequest", "UsageRequest", "WatchRequest"]


class FreeRequest(Struct, frozen=True, tag_field="op", tag="free"):
    """What could be taken now; answered with FreeResources."""


class OnboardedRequest(Struct, frozen=True, tag_field="op", tag="onboarded"):
    """What the owner offers and on what terms; answered with OnboardedResources, or `not_onboarded`."""


class AllocatedRequest(Struct, frozen=True, tag_field="op", tag="allocated"):
    """The sum of what runs; answered with Resources."""


class MachineRequest(Struct, frozen=True, tag_field="op", tag="machine"):
    """What the hardware has; answered with MachineResources, without the network's addresses for other peers."""


class UsageRequest(Struct, frozen=True, tag_field="op", tag="usage"):
    """What the machine uses now; answered with Resources, or `usage_unknown`."""


class WatchRequest(Struct, frozen=True, tag_field="op", tag="watch"):
    """FreeResources now and after every change, as events; a slow reader sees the newest."""
