"""Summaries of rows, and how sure a mean difference is."""

import warnings

import pytest

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.evaluation.tables import bootstrap_interval, count_changes, markdown_table, mean_and_median

# Not of equal size above and below, so that the interval is not symmetric by chance.
DIFFERENCES = [-0.9, -0.5, -0.4, -0.35, -0.1, 0.0, 0.02, 0.3]


def test_helpers_by_hand() -> None:
    assert mean_and_median([1.0, None, 3.0, 8.0]) == {"mean": 4.0, "median": 3.0}
    assert mean_and_median([None]) == {"mean": None, "median": None}
    assert count_changes([1.0, 2.0, 3.0], [0.5, 2.5, 3.0]) == (1, 1)
    with pytest.raises(InvalidDataError):
        count_changes([1.0, 2.0], [1.0])
    table = markdown_table([{"a": 1.23456, "b": None}, {"a": "x"}], ["a", "b"])
    assert table == "| a | b |\n|---|---|\n| 1.235 | - |\n| x |  |"


def test_an_interval_of_many_differences_is_that_of_the_normal_distribution() -> None:
    # The mean of 100 numbers of +-1 has a standard deviation of 0.1; the ends of 10,000 samples come in steps of 0.02.
    low, high = bootstrap_interval([-1.0, 1.0] * 50)
    assert low == pytest.approx(-0.196, abs=0.03)
    assert high == pytest.approx(0.196, abs=0.03)
    low, high = bootstrap_interval([-1.0, 1.0] * 50, confidence=0.5)
    assert low == pytest.approx(-0.067, abs=0.03)
    assert high == pytest.approx(0.067, abs=0.03)


def test_an_interval_of_two_differences_is_from_the_one_to_the_other() -> None:
    # A quarter of all samples is twice the one, a quarter twice the other.
    assert bootstrap_interval([-0.5, 0.25]) == (-0.5, 0.25)
    # The middle 40 % of the samples are the one half of them in which both are drawn.
    assert bootstrap_interval([-0.5, 0.25], confidence=0.4) == pytest.approx((-0.125, -0.125))


def test_an_interval_moves_with_its_unit_and_its_origin() -> None:
    low, high = bootstrap_interval(DIFFERENCES)
    mean = sum(DIFFERENCES) / len(DIFFERENCES)
    assert min(DIFFERENCES) < low < mean < high < max(DIFFERENCES)
    moved = bootstrap_interval([2.0 * value + 5.0 for value in DIFFERENCES])
    assert moved == pytest.approx((2.0 * low + 5.0, 2.0 * high + 5.0))
    wider = bootstrap_interval(DIFFERENCES, confidence=0.99)
    assert wider[0] < low
    assert wider[1] > high


def test_the_same_seed_draws_the_same_samples() -> None:
    assert bootstrap_interval(DIFFERENCES) == bootstrap_interval(DIFFERENCES, seed=0)
    others = {bootstrap_interval(DIFFERENCES, seed=seed) for seed in range(4)}
    assert len(others) > 1
    # 10,000 samples leave the ends open by a hundredth; the interval is 0.5 wide.
    for low, high in others:
        assert low == pytest.approx(bootstrap_interval(DIFFERENCES)[0], abs=0.02)
        assert high == pytest.approx(bootstrap_interval(DIFFERENCES)[1], abs=0.02)


@pytest.mark.parametrize("value", [0.5, 0.0, -0.1])
def test_equal_differences_are_their_own_interval_without_a_warning(value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_interval([value] * 3) == (value, value)
        # As equal as sums of binary digits are.
        low, high = bootstrap_interval([0.1 + 0.2, 0.3, 0.3])
    assert 0.3 <= low <= high <= 0.1 + 0.2


@pytest.mark.parametrize("few", [[], [1.0]])
def test_one_difference_has_no_interval(few: list[float]) -> None:
    with pytest.raises(InvalidDataError, match=f"{len(few)} differences"):
        bootstrap_interval(few)
