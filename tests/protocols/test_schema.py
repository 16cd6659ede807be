"""The schema has exactly the fields of the code."""

from __future__ import annotations

import inspect
import json
import re
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from dms_protocols.messages import adverts, allocation, bid, broadcast, job, peers, resources, tunnel
from dms_protocols.rpc import service
from dms_protocols.wire.error_bodies import ErrorBody
from dms_resources import components, demands
from dms_resources.ledger import leases

TEXT = re.sub(r";[^\n]*", "", (files("dms_protocols") / "schema.cddl").read_text())
RULES = dict(re.findall(r"^([a-z-]+)\s*=\s*((?:.|\n(?![a-z]))*)", TEXT, re.MULTILINE))
NEVER_ALONE = {"LeaseRequest", "ResourceAllocation", "LeaseJob"}
# What a provider knows of a lease and shows to no peer.
NEVER_SENT = {"Lease": {"job", "cgroup", "ended"}}
QUERIES = {"FreeRequest", "OnboardedRequest", "AllocatedRequest", "MachineRequest", "UsageRequest"}


def structs() -> list[type[msgspec.Struct]]:
    modules = (components, demands, leases, resources, bid, allocation, job, tunnel, adverts, peers, broadcast, service)
    found = {
        kind
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and name in module.__all__ and name not in NEVER_ALONE | QUERIES
    }
    return sorted(found | {ErrorBody}, key=lambda kind: kind.__name__)


def rule_name(kind: type[msgspec.Struct]) -> str:
    return "-".join(part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+", kind.__name__))


def keys(rule: str) -> dict[str, bool]:
    """The keys of a map and whether each is optional."""
    return {key: bool(optional) for optional, key in re.findall(r'(\?\s*)?(?<![a-z_-])"?([a-z_]+)"?:\s', rule)}


@pytest.mark.parametrize("kind", structs(), ids=lambda kind: kind.__name__)
def test_every_message_has_its_rule(kind: Any) -> None:
    config = kind.__struct_config__
    expected = {
        field.encode_name: not field.required and config.omit_defaults
        for field in msgspec.structs.fields(kind)
        if field.encode_name not in NEVER_SENT.get(kind.__name__, ())
    }
    if config.tag is not None:
        expected |= {config.tag_field: False}
    if config.tag_field == "op":
        expected |= {"id": False}
    assert keys(RULES[rule_name(kind)]) == expected
    if config.tag is not None:
        assert f'"{config.tag}"' in RULES[rule_name(kind)]


def test_every_query_is_named() -> None:
    for name in QUERIES:
        assert f'"{getattr(resources, name).__struct_config__.tag}"' in RULES["query"]


def test_every_rule_that_is_used_is_there() -> None:
    known = {*RULES, "uint", "int", "tstr", "bstr", "bool", "null", "any", "number"}
    for body in RULES.values():
        words = re.sub(r'"[^"]*"|\.size|[a-z_]+\s*:', " ", body).replace("::", " ")
        assert set(re.findall(r"[a-z][a-z-]*", words)) <= known


def test_no_bare_key_is_also_the_name_of_a_rule() -> None:
    for body in RULES.values():
        assert not set(re.findall(r'(?<!["a-z_-])([a-z_]+):\s', body)) & RULES.keys()


def test_no_rule_has_a_name_of_the_prelude() -> None:
    prelude = {
        "time",
        "uri",
        "number",
        "integer",
        "biguint",
        "bignint",
        "regexp",
        "text",
        "bytes",
        "true",
        "nil",
        "any",
    }
    assert not RULES.keys() & prelude


def test_every_vector_holds_under_a_validator_that_is_not_ours() -> None:
    cddl_verifier = pytest.importorskip("cddl_verifier")
    validator = cddl_verifier.Validator(files("dms_protocols").joinpath("schema.cddl").read_text())
    vectors = json.loads((files("dms_protocols") / "test_vectors.json").read_text())
    derived = vectors["derived"]
    payloads = [("message", frame["meaning"], _payload(bytes.fromhex(frame["hex"]))) for frame in vectors["frames"]]
    for rule, name in (
        ("bid", "bid"),
        ("capacity-advert", "advert"),
        ("broadcast-request", "broadcast"),
        ("ensemble-request", "request"),
        ("job", "job"),
    ):
        payloads.append((rule, name, bytes.fromhex(derived[f"{name}_deterministic"])))
    payloads.append(("ensemble-request", "numbers", bytes.fromhex(derived["hard_numbers"]["map_1_0_deterministic"])))
    for rule, meaning, payload in payloads:
        result = validator.validate(payload, root_type=rule)
        assert result.valid, (meaning, result.diagnostics)


def _payload(frame: bytes) -> bytes:
    return next(frame[index + 1 :] for index, byte in enumerate(frame) if byte < 0x80)


def test_every_enumeration_is_complete() -> None:
    for rule, enumeration in (
        ("vendor", components.GPUVendor),
        ("lease-state", leases.LeaseState),
        ("ended-lease", leases.EndReason),
    ):
        for member in enumeration:
            if member is leases.LeaseState.ENDING:
                # Only the provider knows it. For the holder such a lease has ended.
                assert f'"{member.value}"' not in RULES[rule]
                continue
            assert f'"{member.value}"' in RULES[rule]
