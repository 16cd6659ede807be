import pytest

from dms_protocols.token_bucket import TokenBucket


def test_the_burst_is_taken_at_once_and_no_more_however_long_the_bucket_was_full() -> None:
    bucket = TokenBucket(2.0, 5, 0.0)
    assert [bucket.take(1000.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert bucket.wait(1000.0) == pytest.approx(0.5)
    assert not bucket.take(1000.4)
    assert bucket.take(1000.5)


def test_many_are_taken_or_none() -> None:
    bucket = TokenBucket(1.0, 10, 0.0)
    assert bucket.take(0.0, 8)
    assert not bucket.take(0.0, 3)
    assert bucket.take(0.0, 2)


def test_what_was_not_needed_goes_back_up_to_the_burst() -> None:
    bucket = TokenBucket(1.0, 10, 0.0)
    assert bucket.take(0.0, 4)
    assert bucket.full_at() == pytest.approx(4.0)
    bucket.give_back(100)
    assert bucket.full_at() == pytest.approx(0.0)
    assert not bucket.take(0.0, 11)


def test_a_clock_that_goes_back_takes_nothing_away() -> None:
    bucket = TokenBucket(1.0, 2, 100.0)
    assert bucket.take(50.0)
    assert bucket.take(50.0)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)
