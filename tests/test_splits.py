"""Which photos are held out, for every way to say so and every number of photos."""

import itertools
import math
from collections.abc import Sequence

import pytest
from jaxtyping import TypeCheckError

from lora3d_ns.errors import SettingsError
from lora3d_ns.splits import FEWEST_TO_SPLIT, SplitSettings, held_out_photos


def names(count: int) -> tuple[str, ...]:
    return tuple(f"IMG_{number}.jpg" for number in range(count))


def held_out(count: int, settings: SplitSettings) -> tuple[int, ...]:
    """Those held out, after a look at what always has to hold."""
    chosen = held_out_photos(names(count), settings)
    assert list(chosen) == sorted(set(chosen))
    assert all(0 <= index < count for index in chosen)
    assert count - len(chosen) >= min(count, 2)
    if count < FEWEST_TO_SPLIT:
        assert chosen == ()
    return chosen


COUNTS = range(1, 51)


@pytest.mark.parametrize("interval", [*range(2, 12), 49, 50, 51, 1000])
def test_interval(interval: int) -> None:
    settings = SplitSettings(mode="interval", interval=interval)
    for count in COUNTS:
        chosen = held_out(count, settings)
        if count >= FEWEST_TO_SPLIT:
            assert chosen
        assert 0 not in chosen
        assert all(second - first == interval for first, second in itertools.pairwise(chosen))
        # One of each n, except where two photos have to remain.
        assert len(chosen) <= math.ceil(count / interval)
        assert count < 2 * interval or len(chosen) >= min(count // interval, count - 2)


@pytest.mark.parametrize("fraction", [1e-9, 0.01, 0.1, 1 / 3, 0.5, 0.6, 0.75, 0.9, 0.99, 1.0 - 1e-9])
def test_fraction(fraction: float) -> None:
    settings = SplitSettings(mode="fraction", fraction=fraction)
    for count in COUNTS:
        chosen = held_out(count, settings)
        assert 0 not in chosen
        if count < FEWEST_TO_SPLIT:
            continue
        kept = count - len(chosen)
        # The share that was asked for, to the next whole photo, unless one or all but two would go.
        assert abs(kept - count * fraction) <= 0.5 or kept in (2, count - 1)
        assert len(chosen) >= 1
        # Evenly spread: gaps differ by one photo at most, and the ends are no further than a gap away.
        gaps = [second - first for first, second in itertools.pairwise(chosen)]
        if gaps:
            assert max(gaps) - min(gaps) <= 1
            assert chosen[0] <= max(gaps)
            assert count - 1 - chosen[-1] <= max(gaps)


def test_the_usual_numbers() -> None:
    assert held_out(3, SplitSettings()) == (1,)
    assert held_out(8, SplitSettings()) == (4,)
    assert held_out(20, SplitSettings()) == (4, 12)
    assert held_out(20, SplitSettings(mode="fraction")) == (5, 15)
    assert held_out(3, SplitSettings(mode="fraction")) == (1,)
    assert held_out(10, SplitSettings(interval=2)) == (1, 3, 5, 7, 9)
    # All but two: the first one stays among them.
    assert held_out(5, SplitSettings(mode="fraction", fraction=0.01)) == (1, 2, 4)


def test_all_holds_out_none() -> None:
    for count in COUNTS:
        assert held_out(count, SplitSettings(mode="all")) == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a.jpg", "b_test.jpg", "c.jpg"], (1,)),
        (["eval-0.png", "eval-1.png", "train-0.png", "train-1.png"], (0, 1)),
        (["a.jpg", "b.jpg", "HELD_OUT_7.JPG"], (2,)),
        (["x/Test_1.jpg", "x/2.jpg", "x/3.jpg"], (0,)),
        # A folder's name and an ending are no part of it.
        (["test/1.jpg", "test/2.jpg", "a/eval.jpg", "b/3.test"], (2,)),
    ],
)
def test_names_say_it(given: Sequence[str], expected: tuple[int, ...]) -> None:
    assert held_out_photos(given, SplitSettings(mode="filename")) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a.jpg", "b.jpg", "c.jpg"], "0 of 3"),
        (["test_a.jpg", "test_b.jpg", "c.jpg"], "2 of 3"),
        (["test_a.jpg", "eval_b.jpg", "held_out_c.jpg"], "3 of 3"),
    ],
)
def test_names_that_leave_nothing_to_do_are_an_error(given: Sequence[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        held_out_photos(given, SplitSettings(mode="filename"))


def test_names_of_one_or_two_photos_hold_out_none() -> None:
    for count in (1, 2):
        assert held_out_photos([f"test_{number}.jpg" for number in range(count)], SplitSettings(mode="filename")) == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"interval": 1}, "interval of 1"),
        ({"interval": 0}, "interval of 0"),
        ({"interval": -8}, "interval of -8"),
        ({"fraction": 0.0}, "fraction of 0"),
        ({"fraction": 1.0}, "fraction of 1"),
        ({"fraction": math.nan}, "fraction of nan"),
    ],
)
def test_settings_are_checked(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        SplitSettings(**wrong)  # pyright: ignore[reportArgumentType]


def test_other_modes_are_refused() -> None:
    # The type check that the tests switch on comes before ours.
    with pytest.raises((SettingsError, TypeCheckError), match="mode"):
        SplitSettings(mode="none")  # pyright: ignore[reportArgumentType]
