from dms_resources.bounded_dict import BoundedDict


def test_the_oldest_goes_when_there_are_too_many() -> None:
    known: BoundedDict[str, int] = BoundedDict(2)
    for number, name in enumerate("abc"):
        known[name] = number
    assert list(known.items()) == [("b", 1), ("c", 2)]


def test_an_entry_that_is_set_or_used_again_becomes_the_newest() -> None:
    known: BoundedDict[str, int] = BoundedDict(3)
    known["a"], known["b"], known["c"] = 1, 2, 3
    known["a"] = 4
    assert known.recent("b") == 2
    assert known.recent("none") is None
    assert list(known) == ["c", "a", "b"]


def test_every_way_to_put_something_in_is_bounded() -> None:
    known: BoundedDict[int, int] = BoundedDict(2)
    known.update({number: number for number in range(5)})
    assert list(known) == [3, 4]
    assert known.setdefault(7, 7) == 7
    assert list(known) == [4, 7]
    known |= {8: 8}
    assert list(known) == [7, 8]


def test_what_is_over_goes_from_the_oldest_on() -> None:
    known: BoundedDict[str, int] = BoundedDict(9)
    known["a"], known["b"], known["c"] = 1, 5, 2
    known.drop_oldest_while(lambda value: value < 3)
    assert list(known) == ["b", "c"]
