"""Decides whether a machine is where a node may run: yes, no, or unknown.

A place may have a field that this release does not know, such as an internet provider. Such a field narrows the place
down. If it were ignored, "at this provider" would be read as "anywhere". Therefore a node with an unknown field is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..messages.bid import GeneralRequirements, Location, Place

__all__ = ["lies_in", "unknown_requirements", "why_not_here"]

_PLACE: Final = frozenset(Place.__struct_fields__)
_LOCATION: Final = frozenset(Location.__struct_fields__)
_REQUIREMENTS: Final = frozenset(GeneralRequirements.__struct_fields__)


def lies_in(place: Place, region: Place) -> bool | None:
    """Whether `place` lies in `region`. None if the place is not known exactly enough."""
    known = True
    for name in ("continent", "country", "city"):
        asked, here = getattr(region, name).casefold(), getattr(place, name).casefold()
        if asked and here and asked != here:
            return False
        known = known and (not asked or bool(here))
    return True if known else None


def why_not_here(location: Location, place: Place | None) -> str | None:
    """A sentence that says why a node may not run at `place`; None if it may. If the place is unknown, the node may not
    run.
    """
    here = place or Place()
    if location.accept:
        found = [lies_in(here, region) for region in location.accept]
        if True not in found:
            return _unknown() if None in found else f"this machine is in {_name(here)}, which is not accepted"
    found = [lies_in(here, region) for region in location.reject]
    if True in found:
        return f"this machine is in {_name(here)}, which is rejected"
    return _unknown() if None in found else None


def unknown_requirements(node: Mapping[str, Any]) -> list[str]:
    """The fields of a node's location and general requirements that this release does not know. `node` is the node's
    map.
    """
    unknown = dict.fromkeys(node.get("general_requirements", {}).keys() - _REQUIREMENTS)
    location = node.get("location", {})
    unknown |= dict.fromkeys(location.keys() - _LOCATION)
    for place in (*location.get("accept", ()), *location.get("reject", ())):
        unknown |= dict.fromkeys(place.keys() - _PLACE)
    return sorted(unknown)


def _unknown() -> str:
    return "this provider has not set a location that is exact enough (location in its terms)"


def _name(place: Place) -> str:
    return ", ".join(part for part in (place.city, place.country, place.continent) if part) or "an unknown place"
