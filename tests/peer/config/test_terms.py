"""The terms file: the example in the docs, what is refused and where, and arbitrary bytes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_peer.cli.tables.status import show_status
from dms_peer.config.terms import OwnerTerms, parse_terms, read_terms_file
from dms_peer.errors import DocumentError
from dms_peer.owner.administration import terms_summary
from dms_peer.owner.messages import StatusAnswer
from dms_peer.policies.settings import EndpointSettings, EntryPointSettings, ExecutableSettings
from dms_protocols.bidding.policies import PeerList
from dms_protocols.bidding.prices import PricesPerHour
from dms_protocols.bidding.service import BidTerms
from dms_protocols.messages.bid import Place
from dms_resources.components import CPU, RAM, Disk, FreeResources, Resources
from dms_resources.units import Cores

DOCS = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
EXAMPLE = re.search(r"```yaml\n(.*?)```", DOCS, re.DOTALL)[1]  # type: ignore[index]
ALLOWED = "12D3KooWKT4R3MXsXok4hq59xGx1JubPnfybYn24aSHFQNUEiaBG"
DENIED = "12D3KooWBaNnGphBxVkQNWkpqmpoh1GVUbXBKFSxAD96zaqdX4BK"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program in it."""
    (tmp_path / "policy").write_text("#!/bin/sh\n")
    (tmp_path / "policy").chmod(0o755)
    return tmp_path


def test_the_file_in_the_docs_has_everything_and_says_what_it_seems_to(folder: Path) -> None:
    (folder / "terms.yaml").write_text(EXAMPLE)
    terms = read_terms_file(folder / "terms.yaml")
    assert terms == OwnerTerms(
        location=Place(continent="Europe", country="DE", city="Berlin"),
        executors=("docker",),
        privileged_docker=False,
        valid_seconds=300.0,
        prices=PricesPerHour(
            currency="EUR", core=10_000, ram_gib=2_000, disk_gib=50, gpu=200_000, vram_gib=10_000, bid=1_000
        ),
        peers=PeerList(allow=frozenset({ALLOWED}), deny=frozenset({DENIED})),
        policies=(
            EntryPointSettings(name="night-tariff"),
            ExecutableSettings(
                command=(str(folder / "policy"), "--strict"), folder=str(folder), budget=0.5, max_concurrent=2
            ),
            EndpointSettings(url="http://127.0.0.1:8080/policy"),
        ),
    )
    written = set(re.findall(r"\b([a-z_]+):", re.sub("#.*|http:", "", EXAMPLE)))
    fields: set[str] = {*OwnerTerms.__struct_fields__, *PricesPerHour.__struct_fields__, *PeerList.__struct_fields__}
    assert written == fields | set(Place.__struct_fields__) | {"python", "command", "url", "budget", "max_concurrent"}
    bid_terms = terms.bid_terms(())
    assert bid_terms.policies == (terms.peers, terms.prices)
    assert bid_terms.executors == frozenset({"docker"})


def test_no_terms_cost_nothing(tmp_path: Path) -> None:
    assert parse_terms(b"{}", "t.yaml", tmp_path) == OwnerTerms()
    assert OwnerTerms().bid_terms(()) == BidTerms()


@pytest.mark.parametrize(
    ("text", "place", "field", "fragment"),
    [
        ("price: {}", (1, 1), "price", "unknown field"),
        ("prices: {core: 1}", (1, 9), "prices", "currency is missing"),
        ("prices: {currency: EUR, core: 0.0000001}", (1, 31), "prices.core", "finer than a millionth"),
        ("prices: {currency: EUR, core: -1}", (1, 31), "prices.core", "not an amount"),
        ("prices: {currency: EUR, core: 1e3}", (1, 31), "prices.core", "not an amount"),
        ("prices: {currency: EUR, core: 9999999999}", (1, 31), "prices.core", "too high"),
        ("prices:\n  currency: EUR\n  cores: 1", (3, 3), "prices.cores", "unknown field"),
        ("location: Berlin", (1, 11), "location", "must be a mapping"),
        ("location: {town: Berlin}", (1, 12), "location.town", "unknown field"),
        ("valid_seconds: 0", (1, 16), "valid_seconds", "between 1 s"),
        ("valid_seconds: 5mms", (1, 16), "valid_seconds", "invalid duration"),
        ("valid_seconds: soon", (1, 16), "valid_seconds", "invalid duration"),
        ("peers: {allow: []}", (1, 16), "peers.allow", "is empty"),
        ("peers: {deny: [somebody]}", (1, 16), "peers.deny[0]", "not a peer id"),
        ("policies: [{}]", (1, 12), "policies[0]", "exactly one kind of policy"),
        ("policies: [{python: a, url: b}]", (1, 12), "policies[0]", "exactly one kind of policy"),
        ("policies: [{command: []}]", (1, 22), "policies[0].command", "is empty"),
        ("policies: [{command: [./none]}]", (1, 23), "policies[0].command[0]", "no such executable file"),
        ("policies: [{command: [no-such-program]}]", (1, 23), "policies[0].command[0]", "no such executable file"),
        ("policies: [{command: ./policy}]", (1, 22), "policies[0].command", "must be a list"),
        ("policies: [{url: ftp://x/}]", (1, 18), "policies[0].url", "not an HTTP address"),
        ("policies: [{url: 'http://'}]", (1, 18), "policies[0].url", "not an HTTP address"),
        ("policies: [{url: 'http://x:99999/'}]", (1, 18), "policies[0].url", "not an HTTP address"),
        ("policies: [{url: 'http://[::1/'}]", (1, 18), "policies[0].url", "not an HTTP address"),
        ("policies: [{url: 'http://user@x/'}]", (1, 18), "policies[0].url", "user name"),
        ("policies: [{python: a, budget: 0}]", (1, 32), "policies[0].budget", "between 0.01 s and 10 s"),
        ("policies: [{python: a, budget: 11s}]", (1, 32), "policies[0].budget", "between 0.01 s and 10 s"),
        ("policies: [{python: a, budget: 6}, {python: b, budget: 5}]", (1, 11), "policies", "more than 10 s"),
        ("policies: [{python: a, max_concurrent: 0}]", (1, 40), "policies[0].max_concurrent", "from 1 to 64"),
    ],
)
def test_a_bad_file_is_refused_with_line_column_and_field(
    folder: Path, text: str, place: tuple[int, int], field: str, fragment: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_terms(text.encode(), "t.yaml", folder)
    error = caught.value
    assert error.code == "bad_terms"
    assert ((error.line, error.column), error.field) == (place, field)
    assert error.message.startswith(f"t.yaml, line {place[0]}, column {place[1]}: {field}: ")
    assert fragment in error.message


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0.1", 100_000),
        ("3", 3_000_000),
        ("0.000001", 1),
        ("0.30", 300_000),
        ("0.1000000000", 100_000),
        ("'2.5'", 2_500_000),
    ],
)
def test_prices_are_read_exactly(tmp_path: Path, text: str, micros: int) -> None:
    terms = parse_terms(f"prices: {{currency: EUR, core: {text}}}".encode(), "t.yaml", tmp_path)
    assert terms.prices == PricesPerHour(currency="EUR", core=micros)


def test_a_program_is_found_on_the_path(tmp_path: Path) -> None:
    terms = parse_terms(b"policies: [{command: [sh, -c, true]}]", "t.yaml", tmp_path)
    (policy,) = terms.policies
    assert isinstance(policy, ExecutableSettings)
    assert Path(policy.command[0]).is_absolute()
    assert policy.command[1:] == ("-c", "true")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_the_bytes_they_are_terms_or_a_coded_error(data: Any) -> None:
    content = bytearray(EXAMPLE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
    try:
        terms = parse_terms(bytes(content), "t.yaml", Path("/nonexistent"))
    except DocumentError as error:
        code = error.code
    else:
        code = "bad_terms"
        terms_summary(terms)
    assert code == "bad_terms"


def test_status_shows_the_terms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    terms = parse_terms(EXAMPLE.encode(), "t.yaml", folder)
    nothing: dict[str, Any] = {"cpu": CPU(cores=Cores(0)), "ram": RAM(size=0), "disk": Disk(size=0), "gpus": ()}
    status = StatusAnswer(
        peer_id="p",
        addrs=(),
        running=True,
        simulated=False,
        draining=False,
        onboarded=None,
        free=FreeResources(**nothing, ports=0, onboarded=False, draining=False, simulated=False),
        committed=Resources(**nothing),
        allocated=Resources(**nothing),
        leases=(),
        lease_count=0,
        terms=terms_summary(terms),
    )
    show_status(status)
    text = capsys.readouterr().out
    for words in ("0.01 EUR per hour", "0.00005 EUR per hour", "Europe, DE, Berlin", "docker", "refused", "5 min"):
        assert words in text
    for words in (ALLOWED, DENIED, "python night-tariff (within 1 s)", "--strict (within 0.5 s)", "url http://127"):
        assert words in text
