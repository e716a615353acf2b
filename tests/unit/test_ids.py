"""Counted ids are kept packed and exactly: what a dict would say, whatever the ids and their hashes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.runs import ids
from exporter.runs.ids import CountedIds

ODD = "ab \x00\n\u00ff\u00e9\u20ac\ud800\udc00\U00010000"  # halves of a pair, and the pair itself
TEXTS = st.text(st.sampled_from(ODD), max_size=4)  # so short that one begins with another
TIMES = st.floats(min_value=0.0, max_value=10.0)


def test_a_run_that_was_added_is_known_with_its_time() -> None:
    counted = CountedIds([("wf:1", 10.0)])
    counted.add("wf:2", 20.0)
    assert "wf:1" in counted
    assert counted["wf:2"] == 20.0
    assert counted == {"wf:1": 10.0, "wf:2": 20.0}


@pytest.mark.parametrize(
    "id_", ["", "w", "wf:", "wf:12", "wf:1\x00", "WF:1", "f:1", "wf:1wf:2", None, 1, b"wf:1"]
)
def test_a_run_that_was_not_added_is_not_known(id_: object) -> None:
    counted = CountedIds([("wf:1", 10.0), ("wf:2", 20.0)])
    assert id_ not in counted
    with pytest.raises(KeyError):
        counted[str(id_)]


def test_runs_that_were_over_before_an_instant_are_removed_and_returned() -> None:
    counted = CountedIds([("wf:1", 10.0), ("wf:2", 20.0), ("wf:3", 19.0), ("wf:4", 30.0)])
    assert sorted(counted.remove_older(20.0)) == [("wf:1", 10.0), ("wf:3", 19.0)]
    assert counted == {"wf:2": 20.0, "wf:4": 30.0}
    assert counted.remove_older(20.0) == []
    counted.add("wf:1", 40.0)
    assert counted == {"wf:1": 40.0, "wf:2": 20.0, "wf:4": 30.0}


@pytest.mark.parametrize("hashes", [1, 3, 2**64])
@given(
    steps=st.lists(st.tuples(TEXTS, TIMES) | TIMES, max_size=40),
    asked=st.lists(TEXTS, max_size=10),
)
def test_they_hold_what_a_dict_would_also_when_hashes_are_equal(
    hashes: int, steps: list[tuple[str, float] | float], asked: list[str]
) -> None:
    """A step is a run to add, or an instant to remove what is older. Of hash values there are `hashes`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "hash", lambda id_: hash(id_) % hashes - hashes // 2, raising=False)
        counted, expected = CountedIds(), dict[str, float]()
        for step in steps:
            if isinstance(step, float):
                gone = {id_: over for id_, over in expected.items() if over < step}
                assert dict(counted.remove_older(step)) == gone
                expected = {id_: over for id_, over in expected.items() if id_ not in gone}
            elif step[0] not in expected:
                counted.add(*step)
                expected[step[0]] = step[1]
            assert len(counted) == len(expected)
        assert dict(counted) == expected
        assert sorted(counted) == sorted(expected)
        for id_ in (*asked, *(id_[:-1] for id_ in expected), *(id_ + "a" for id_ in expected)):
            assert (id_ in counted) == (id_ in expected)
