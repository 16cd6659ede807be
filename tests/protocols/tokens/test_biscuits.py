"""Tokens: their content, that only the granting peer can make them and that they cannot be widened, and their codes."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import biscuit_auth
import pytest
from biscuit_auth import Algorithm, BiscuitBuilder, BlockBuilder, PrivateKey, PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dms_protocols.errors import AccessError
from dms_protocols.tokens import checks as token_checks
from dms_protocols.tokens.biscuits import (
    MAX_TOKEN_BLOCKS,
    MAX_TOKEN_BYTES,
    attenuate_token,
    create_token,
    grant_id,
    granter_of,
    open_token,
)
from dms_protocols.tokens.checks import TokenChecker
from dms_protocols.tokens.grants import GrantTerms
from dms_resources.ledger.accounts import Account, Allowance
from dms_resources.units import GIB

OWNER_SEED, OTHER_SEED = bytes([1]) * 32, bytes([2]) * 32
OWNER, PROVIDER, ORGANISATION, MEMBER = "owner", "provider", "organisation", "member"
FRIDAY = 1_800_000_000


def public_key(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


OWNER_KEY = public_key(OWNER_SEED)
WIDE = GrantTerms(
    operations=frozenset({"bid_request", "commit"}),
    expires=FRIDAY,
    allowance=Allowance(millicores=8000, gpus=1, ram=64 * GIB, disk=GIB, vram=24 * GIB, leases=10),
)
HALF = GrantTerms(
    operations=frozenset({"commit"}),
    peers=frozenset({MEMBER, "another"}),
    providers=frozenset({PROVIDER}),
    expires=FRIDAY - 100,
    allowance=Allowance(millicores=4000),
)


class HandClock:
    def __init__(self) -> None:
        self.now = float(FRIDAY - 1000)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def new_checker(clock: HandClock) -> Callable[..., TokenChecker]:
    """A checker at the provider, which trusts the owner."""

    def make(provider: str = PROVIDER, revoked: Any = frozenset()) -> TokenChecker:
        return TokenChecker(provider, {OWNER: OWNER_KEY}, revoked, clock)

    return make


def token(*terms: GrantTerms) -> bytes:
    """A chain of blocks with these terms."""
    raw = create_token(OWNER_SEED, OWNER, terms[0])
    for more in terms[1:]:
        raw = attenuate_token(raw, OWNER_KEY, more)
    return raw


def by_hand(source: str, *blocks: str, seed: bytes = OWNER_SEED) -> bytes:
    """A token with these blocks, which our own code would not make."""
    biscuit: Any = BiscuitBuilder(source).build(PrivateKey.from_bytes(seed, Algorithm.Ed25519))  # type: ignore[call-arg,attr-defined]
    for block in blocks:
        biscuit = biscuit.append(BlockBuilder(block))
    return bytes(biscuit.to_bytes())


def code_of(checker: TokenChecker, raw: bytes, operation: str = "commit", peer: str = MEMBER) -> str:
    """The code of the refusal of a token; empty if it is valid."""
    try:
        checker.check(raw, operation=operation, peer=peer)
    except AccessError as error:
        return error.code
    return ""


def test_what_is_written_is_read_back_block_by_block() -> None:
    grants = open_token(token(WIDE, HALF), OWNER_KEY).grants
    assert grants.granted_by == OWNER
    assert [block.terms for block in grants.blocks] == [WIDE, HALF]
    assert grants.expires == FRIDAY - 100
    assert grants.accounts == tuple(Account(id=block.id, allowance=block.terms.allowance) for block in grants.blocks)
    assert granter_of(token(WIDE, HALF)) == OWNER


NAMES = st.frozensets(st.text("abcXYZ019_", min_size=1, max_size=20), min_size=1, max_size=4)
AMOUNT = st.none() | st.integers(0, 2**53)
TERMS = st.builds(
    GrantTerms,
    operations=st.none() | NAMES,
    peers=st.none() | NAMES,
    providers=st.none() | NAMES,
    expires=st.none() | st.integers(0, 2**33),
    allowance=st.builds(Allowance, **dict.fromkeys(Allowance.__struct_fields__, AMOUNT)),
)


@given(st.lists(TERMS, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_whatever_can_be_granted_survives_the_way(terms: list[GrantTerms]) -> None:
    assert [block.terms for block in open_token(token(*terms), OWNER_KEY).grants.blocks] == terms


def test_a_good_token_is_good_and_attenuated_ones_have_the_ids_of_what_they_came_from(
    new_checker: Callable[..., TokenChecker],
) -> None:
    whole = token(WIDE)
    first, second = (attenuate_token(whole, OWNER_KEY, HALF) for _ in range(2))
    ids = [[block.id for block in open_token(raw, OWNER_KEY).grants.blocks] for raw in (whole, first, second)]
    assert ids[0] == ids[1][:1] == ids[2][:1]
    # Two halves are two grants, although their contents are the same.
    assert ids[1][1] != ids[2][1]
    for raw in (whole, first, second):
        assert code_of(new_checker(), raw) == ""


def test_each_way_to_be_no_good_has_a_code(new_checker: Callable[..., TokenChecker], clock: HandClock) -> None:
    checker, half = new_checker(), token(WIDE, HALF)
    assert code_of(checker, half, operation="bid_request") == "token_not_for_this"
    assert code_of(checker, token(WIDE), operation="bid_request") == ""
    assert code_of(checker, half, peer="stranger") == "token_not_yours"
    assert code_of(new_checker(provider="elsewhere"), half) == "token_not_here"
    clock.now = FRIDAY - 100
    assert code_of(checker, half) == ""
    clock.now = FRIDAY - 99
    assert code_of(checker, half) == "token_expired"
    assert code_of(checker, token(WIDE)) == ""
    clock.now = FRIDAY + 1
    assert code_of(checker, token(WIDE)) == "token_expired"


def test_no_block_can_give_what_one_before_it_did_not(new_checker: Callable[..., TokenChecker]) -> None:
    everything = GrantTerms(allowance=Allowance(millicores=10**9))
    grants = new_checker().check(token(WIDE, everything), operation="commit", peer=MEMBER)
    assert [account.allowance.millicores for account in grants.accounts] == [8000, 10**9]
    only_half = token(HALF, GrantTerms(peers=frozenset({"stranger"}), expires=FRIDAY))
    assert code_of(new_checker(), only_half, peer="stranger") == "token_not_yours"
    assert code_of(new_checker(), only_half, peer=MEMBER) == "token_not_yours"


def test_a_revoked_block_ends_all_that_came_of_it_and_nothing_else(new_checker: Callable[..., TokenChecker]) -> None:
    whole = token(WIDE)
    first, second = (attenuate_token(whole, OWNER_KEY, HALF) for _ in range(2))
    grandchild = attenuate_token(first, OWNER_KEY, GrantTerms())
    revoked: set[str] = set()
    checker = new_checker(revoked=revoked)
    assert [code_of(checker, raw) for raw in (whole, first, second, grandchild)] == [""] * 4
    revoked.add(open_token(first, OWNER_KEY).grants.blocks[1].id)
    assert [code_of(checker, raw) for raw in (whole, first, second, grandchild)] == [
        "", "token_revoked", "", "token_revoked",
    ]  # fmt: skip
    revoked.add(open_token(whole, OWNER_KEY).grants.blocks[0].id)
    assert [code_of(checker, raw) for raw in (whole, first, second, grandchild)] == ["token_revoked"] * 4


def test_the_id_of_a_block_follows_from_biscuits_own_revocation_id() -> None:
    raw = token(WIDE, HALF)
    biscuit = biscuit_auth.Biscuit.from_bytes(raw, PublicKey.from_bytes(OWNER_KEY, Algorithm.Ed25519))  # type: ignore[call-arg,attr-defined]
    assert [grant_id(one) for one in biscuit.revocation_ids] == [
        block.id for block in open_token(raw, OWNER_KEY).grants.blocks
    ]


def test_a_token_of_somebody_who_is_not_trusted_is_no_token(new_checker: Callable[..., TokenChecker]) -> None:
    assert code_of(new_checker(), create_token(OTHER_SEED, "other", WIDE)) == "token_invalid"
    # Nor of another peer that claims to be the owner.
    assert code_of(new_checker(), create_token(OTHER_SEED, OWNER, WIDE)) == "token_invalid"
    with pytest.raises(AccessError):
        attenuate_token(create_token(OTHER_SEED, OWNER, WIDE), OWNER_KEY, HALF)


@pytest.mark.parametrize(
    "statement",
    [
        'right("everything");',
        'limit("cores", 8);',
        'limit("millicores", -1);',
        'limit("millicores", 9223372036854775807);',
        'check if weekday($day), $day != "sunday";',
        "check if time($time), $time < 2030-01-01T00:00:00Z;",
        'check if operation("commit");',
        'check all operation($operation), {"commit"}.contains($operation);',
        'reject if operation("commit");',
        'limit("millicores", $x) <- limit("ram", $x);',
        'granted_by("somebody");',
        'check if peer($peer), {"a\\"; limit(\\"millicores\\", 1); //"}.contains($peer);',
        'check if peer($peer), {""}.contains($peer);',
    ],
)
def test_a_block_that_says_what_is_not_understood_is_refused_and_not_passed_over(
    new_checker: Callable[..., TokenChecker], statement: str
) -> None:
    raw = by_hand('granted_by("owner");', statement)
    assert code_of(new_checker(), raw) == "token_invalid"


@pytest.mark.parametrize("source", ["", 'granted_by("owner"); granted_by("other");', 'limit("ram", 1);'])
def test_a_token_that_does_not_say_who_granted_it_is_refused(
    new_checker: Callable[..., TokenChecker], source: str
) -> None:
    assert code_of(new_checker(), by_hand(source)) == "token_invalid"


def test_several_statements_on_one_thing_all_hold(new_checker: Callable[..., TokenChecker]) -> None:
    raw = by_hand(
        'granted_by("owner"); limit("millicores", 2000); limit("millicores", 1000); limit("millicores", 3000);'
        'check if peer($peer), {"member", "x"}.contains($peer); check if peer($peer), {"member", "y"}.contains($peer);'
        "check if time($time), $time <= 2027-01-15T08:00:00Z; check if time($time), $time <= 2027-01-15T07:45:00Z;"
    )
    assert open_token(raw, OWNER_KEY).grants.blocks[0].terms == GrantTerms(
        peers=frozenset({MEMBER}), expires=FRIDAY - 900, allowance=Allowance(millicores=1000)
    )
    assert code_of(new_checker(), raw) == ""
    assert code_of(new_checker(), raw, peer="x") == "token_not_yours"


def test_a_third_party_cannot_add_a_block(new_checker: Callable[..., TokenChecker]) -> None:
    biscuit: Any = biscuit_auth.Biscuit.from_bytes(
        token(WIDE),
        PublicKey.from_bytes(OWNER_KEY, Algorithm.Ed25519),  # type: ignore[call-arg,attr-defined]
    )
    key = PrivateKey.from_bytes(OTHER_SEED, Algorithm.Ed25519)  # type: ignore[call-arg,attr-defined]
    block = biscuit.third_party_request().create_block(key, BlockBuilder('limit("ram", 1)'))
    pair = biscuit_auth.KeyPair.from_private_key(key)
    raw = bytes(biscuit.append_third_party(pair.public_key, block).to_bytes())
    assert code_of(new_checker(), raw) == "token_invalid"


# A grant whose second block has a P-256 key, with which the third is signed; and the same token with the other valid
# signature, which anybody can compute from the first one without a key.
P256_HEAD = (
    "EoMBChkKCmdyYW50ZWRfYnkYAyIJCgcIgAgSAhgHEiQIABIgqxn+WA6FqiOZ0Ajoj2itS1KznXTrHmp+6Dwn7XUhmmgaQLpptOxq"
    "DbPeMGGjourva2ZScEUvIEDlkSQPwrWavaDHtj+nEUb9ej1BSbBwuJWyEXNLok6M4cfDFTONP6O+ugEaiQEKHgoFbGltaXQKA3Jh"
    "bRgDIg4KDAiBCBIDGIIIEgIQBRIlCAESIQKzRbRevdNPCws+2+ny1PJUoEy6YBSGQ1ZnWgBx5Xee3BpA44nayMhV3+qNx9gGDy5U"
    "d6aBnnzoQDQN1CBrS7GS9DPRm8HpMuAdoF51qhsL1IxkfsM1T9YtIz5FP9OFTxCu"
)
P256_TAILS = (
    (
        "DRqIAQoYCgRkaXNrGAMiDgoMCIEIEgMYgwgSAhAHEiQIABIgUHQ7M03OOdOIuKCYP9wF3DHM//zAjzDr9gAPypo65jUaRjBEAiAx"
        "O08GIfLp7lGzLanJ3quIDUW3hYDl3qbWvL03y5NLhwIgfVli4U9JEj69RAiHVF9gJdfI8sl80MraHx/TR+PSfxgiIgogYjAf8sV1"
        "MSE0zLRNKYHuIZSiui3J7JNUK8zMDDtVj8s="
    ),
    (
        "DRqJAQoYCgRkaXNrGAMiDgoMCIEIEgMYgwgSAhAHEiQIABIgUHQ7M03OOdOIuKCYP9wF3DHM//zAjzDr9gAPypo65jUaRzBFAiAx"
        "O08GIfLp7lGzLanJ3quIDUW3hYDl3qbWvL03y5NLhwIhAIKmnR2wtu3CQrv3eKugn9nlHgfkKkbTqtSZ93sYkKY5IiIKIGIwH/LF"
        "dTEhNMy0TSmB7iGUorotyeyTVCvMzAw7VY/L"
    ),
)


def test_nobody_gives_a_block_another_id_than_the_one_that_is_revoked_and_charged(
    new_checker: Callable[..., TokenChecker],
) -> None:
    tokens = [base64.b64decode(P256_HEAD + tail) for tail in P256_TAILS]
    key = PublicKey.from_bytes(OWNER_KEY, Algorithm.Ed25519)  # type: ignore[call-arg,attr-defined]
    opened = [biscuit_auth.Biscuit.from_bytes(raw, key) for raw in tokens]
    assert [one.block_source(2) for one in opened] == ['limit("disk", 7);\n'] * 2
    assert opened[0].revocation_ids[:2] == opened[1].revocation_ids[:2]
    assert opened[0].revocation_ids[2] != opened[1].revocation_ids[2]
    assert [code_of(new_checker(), raw) for raw in tokens] == ["token_invalid"] * 2


def test_a_token_is_bounded_in_bytes_and_blocks(new_checker: Callable[..., TokenChecker]) -> None:
    raw = token(WIDE)
    for _ in range(MAX_TOKEN_BLOCKS - 1):
        raw = attenuate_token(raw, OWNER_KEY, GrantTerms())
    assert code_of(new_checker(), raw) == ""
    with pytest.raises(AccessError, match="passed on 15 times"):
        attenuate_token(raw, OWNER_KEY, GrantTerms())
    assert code_of(new_checker(), by_hand('granted_by("owner");', *[""] * MAX_TOKEN_BLOCKS)) == "token_invalid"
    with pytest.raises(AccessError, match="would have"):
        attenuate_token(token(WIDE), OWNER_KEY, GrantTerms(peers=frozenset(f"p{n:0100}" for n in range(100))))
    with pytest.raises(AccessError, match="are allowed"):
        open_token(bytes(MAX_TOKEN_BYTES + 1), OWNER_KEY)
    assert code_of(new_checker(), by_hand('granted_by("owner");' + 'limit("ram", 1);' * 40)) == "token_invalid"


@pytest.mark.parametrize(
    "terms",
    [
        {"operations": frozenset({'a"; limit("ram", 9)'})},
        {"peers": frozenset({""})},
        {"providers": frozenset({"x" * 129})},
        {"expires": -1},
        {"expires": 10**12},
    ],
)
def test_what_no_block_can_say_is_refused_where_it_is_made(terms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="grant"):
        GrantTerms(**terms)


def test_a_grant_for_nobody_is_none() -> None:
    with pytest.raises(ValueError, match="at least one peer"):
        create_token(OWNER_SEED, OWNER, GrantTerms(peers=frozenset()))


GOOD = token(WIDE, HALF)


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_nothing_but_coded_errors_comes_of_any_bytes(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    check_bytes(bytes(raw))


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_nothing_but_coded_errors_comes_of_noise(raw: bytes) -> None:
    check_bytes(raw)


def check_bytes(raw: bytes) -> None:
    checker = TokenChecker(PROVIDER, {OWNER: OWNER_KEY}, clock=lambda: FRIDAY - 1000.0)
    code = code_of(checker, raw)
    assert code in ("", "token_invalid")
    if not code:
        # Other bytes of the same token: it grants the same.
        assert open_token(raw, OWNER_KEY).grants == open_token(GOOD, OWNER_KEY).grants


def test_signatures_are_checked_once_and_what_is_remembered_is_bounded(
    new_checker: Callable[..., TokenChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []

    def count(raw: bytes, key: bytes) -> Any:
        opened.append(raw)
        return open_token(raw, key)

    monkeypatch.setattr(token_checks, "open_token", count)
    monkeypatch.setattr(token_checks, "_MOST_REMEMBERED", 2)
    checker, tokens = new_checker(), [token(WIDE) for _ in range(3)]
    for raw in [tokens[0]] * 5 + [tokens[1], tokens[0], tokens[2], tokens[0], tokens[1]]:
        assert code_of(checker, raw) == ""
    assert opened == [tokens[0], tokens[1], tokens[2], tokens[1]]


def test_biscuits_own_authorizer_has_the_last_word(
    new_checker: Callable[..., TokenChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we read from a block decides only about the code: if it were read wrongly, the token would still
    be refused.
    """
    monkeypatch.setattr(TokenChecker, "_check_terms", lambda *values: None)
    half = token(WIDE, HALF)
    assert code_of(new_checker(), half) == ""
    assert code_of(new_checker(), half, peer="stranger") == "token_not_for_this"
    assert code_of(new_checker(), half, operation="bid_request") == "token_not_for_this"
    assert code_of(new_checker(provider="elsewhere"), half) == "token_not_for_this"
