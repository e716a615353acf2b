"""Text of values that do not change is written once, as long as it is shown."""

import gc
import weakref

import pytest

from exporter.metrics.kept import Kept


class Value:
    """Something that text is made of."""


def shown(kept: Kept, *values: object, kind: str = "a kind") -> list[object]:
    """Those of the values of which text was written for this exposition."""
    written: list[object] = []

    def write(value: object) -> str:
        written.append(value)
        return f"text of {id(value)}"

    with kept.texts() as text_of:
        for value in values:
            assert text_of(value, kind, lambda value=value: write(value)) == f"text of {id(value)}"
    return written


def test_text_is_written_once_while_each_exposition_shows_its_value() -> None:
    kept, first, second = Kept(), Value(), Value()
    assert shown(kept, first) == [first]
    assert shown(kept, first, second) == [second]
    assert shown(kept, first, second) == []
    assert shown(kept, second, kind="another") == [second]


def test_what_an_exposition_did_not_show_is_let_go() -> None:
    kept, value = Kept(), Value()
    gone = weakref.ref(value)
    shown(kept, value)
    shown(kept)
    del value
    gc.collect()
    assert gone() is None


def test_a_value_in_the_place_of_one_that_is_gone_has_its_own_text() -> None:
    """An identity is used again as soon as nobody holds its value."""
    kept = Kept()
    for n in range(100):
        with kept.texts() as text_of:
            assert text_of([n], "a kind", lambda n=n: f"text of {n}") == f"text of {n}"


def test_an_exposition_that_broke_off_leaves_what_was_kept_before() -> None:
    kept, value = Kept(), Value()
    shown(kept, value)
    with pytest.raises(KeyError), kept.texts():
        raise KeyError
    assert shown(kept, value) == []
