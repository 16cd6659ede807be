from __future__ import annotations

import pytest

from dms_protocols.bidding.versions import BID_1_0, BID_1_1, BID_VERSIONS, bid_version
from dms_protocols.protocol_ids import (
    BID_PROTOCOL,
    BID_PROTOCOL_1_1,
    RESOURCES_PROTOCOL,
    ProtocolID,
    newest_first,
    newest_of_each,
    versions_of,
)


def test_a_protocol_id_is_a_name_and_a_semantic_version() -> None:
    parsed = ProtocolID.parse("/dms/bid/1.12.3")
    assert (parsed.name, parsed.major, parsed.minor, parsed.patch) == ("/dms/bid", 1, 12, 3)
    assert str(parsed) == "/dms/bid/1.12.3"


@pytest.mark.parametrize(
    "text",
    ["", "/", "/1.0.0", "dms/bid/1.0.0", "/dms/bid", "/dms/bid/1.0", "/dms/bid/1.0.0.0", "/dms/bid/01.0.0",
     "/dms/bid/1.0.0-rc1", "/dms/bid/1.0.0\n", "/dms/bid/1.0.x", "/dms/bid/1.0.-1", "/dms/bid/1.0.9999999999"],
)  # fmt: skip
def test_what_is_no_protocol_id_with_a_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no protocol id"):
        ProtocolID.parse(text)


def test_versions_are_numbers_and_not_text() -> None:
    versions = ["/p/1.9.0", "/p/1.10.0", "/p/2.0.0", "/p/1.10.1", "/p/0.99.99"]
    assert newest_first(versions) == ["/p/2.0.0", "/p/1.10.1", "/p/1.10.0", "/p/1.9.0", "/p/0.99.99"]


def test_what_is_offered_is_what_is_known_newest_first() -> None:
    assert versions_of(BID_PROTOCOL) == versions_of(BID_PROTOCOL_1_1) == [BID_PROTOCOL_1_1, BID_PROTOCOL]
    assert versions_of(BID_PROTOCOL) == [version.protocol for version in BID_VERSIONS]
    assert versions_of(RESOURCES_PROTOCOL) == [RESOURCES_PROTOCOL]
    assert versions_of("/somebody/else/3.0.0") == ["/somebody/else/3.0.0"]


def test_of_each_protocol_the_newest() -> None:
    served = {"/a/1.9.0": 1, "/b/1.0.0": 2, "/a/1.10.0": 3, "/a/x/1.0.0": 4}
    assert newest_of_each(served) == {"/a/1.10.0": 3, "/a/x/1.0.0": 4, "/b/1.0.0": 2}


def test_a_bid_version_by_its_protocol_id() -> None:
    assert bid_version(BID_PROTOCOL) is BID_1_0
    assert bid_version(BID_PROTOCOL_1_1) is BID_1_1
    assert bid_version("") is BID_1_0
