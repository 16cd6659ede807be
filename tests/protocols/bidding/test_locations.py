from __future__ import annotations

import pytest

from dms_protocols.bidding.locations import lies_in, why_not_here
from dms_protocols.messages.bid import Location, Place

BERLIN = Place(continent="Europe", country="DE", city="Berlin")
GERMANY = Place(country="de")


@pytest.mark.parametrize(
    ("place", "region", "verdict"),
    [
        (BERLIN, Place(), True),
        (BERLIN, GERMANY, True),
        (BERLIN, Place(country="FR"), False),
        (BERLIN, Place(country="DE", city="Bonn"), False),
        (GERMANY, BERLIN, None),
        (GERMANY, Place(country="FR", city="Paris"), False),
        (Place(), GERMANY, None),
    ],
)
def test_lies_in(place: Place, region: Place, verdict: bool | None) -> None:
    assert lies_in(place, region) is verdict


@pytest.mark.parametrize(
    ("accept", "reject", "place", "allowed"),
    [
        ((), (), None, True),
        ((GERMANY,), (), BERLIN, True),
        ((GERMANY,), (), None, False),
        ((Place(country="FR"), GERMANY), (), BERLIN, True),
        ((Place(country="FR"),), (), BERLIN, False),
        ((), (GERMANY,), BERLIN, False),
        ((), (Place(country="FR"),), BERLIN, True),
        ((), (Place(country="FR"),), None, False),
        ((GERMANY,), (BERLIN,), BERLIN, False),
        ((GERMANY,), (BERLIN,), GERMANY, False),
    ],
)
def test_what_is_unknown_is_a_no(
    accept: tuple[Place, ...], reject: tuple[Place, ...], place: Place | None, allowed: bool
) -> None:
    assert (why_not_here(Location(accept=accept, reject=reject), place) is None) is allowed
