"""Whether a machine stands where a node may run: true, false, or unknown."""

from __future__ import annotations

from ..messages.bid import Location, Place

__all__ = ["lies_in", "why_not_here"]


def lies_in(place: Place, region: Place) -> bool | None:
    """Whether `place` lies in `region`; None when the place is not known exactly enough."""
    known = True
    for name in ("continent", "country", "city"):
        asked, here = getattr(region, name).casefold(), getattr(place, name).casefold()
        if asked and here and asked != here:
            return False
        known = known and (not asked or bool(here))
    return True if known else None


def why_not_here(location: Location, place: Place | None) -> str | None:
    """A sentence that says why a node may not run at `place`; None when it may. What is unknown is a no."""
    here = place or Place()
    if location.accept:
        found = [lies_in(here, region) for region in location.accept]
        if True not in found:
            return _unknown() if None in found else f"this machine is in {_name(here)}, which is not accepted"
    found = [lies_in(here, region) for region in location.reject]
    if True in found:
        return f"this machine is in {_name(here)}, which is rejected"
    return _unknown() if None in found else None


def _unknown() -> str:
    return "the owner has not said exactly enough where this machine is"


def _name(place: Place) -> str:
    return ", ".join(part for part in (place.city, place.country, place.continent) if part) or "an unknown place"
