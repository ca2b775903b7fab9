"""The pruned share over training."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pfb import Schedule, window


def test_constant():
    assert {Schedule(0.3).share(step, None) for step in range(10)} == {0.3}


@given(st.integers(1, 500), st.floats(0, 0.45), st.floats(0.55, 1.0))
def test_outside_the_window_all_samples_train(total, start, stop):
    schedule = window(0.4, start=start, stop=stop)
    for step in range(total + 1):
        progress = step / total
        assume(min(abs(progress - start), abs(progress - stop)) > 1e-8 or progress in (start, stop))
        inside = start <= progress < stop
        assert schedule.share(step, total) == (0.4 if inside else 0.0)


def test_ramp_takes_few_levels_in_the_first_half():
    shares = [window(0.4, ramp=4).share(step, 80) for step in range(80)]
    assert sorted(set(shares)) == [0.08, 0.16, 0.24, 0.32, 0.4]
    assert shares == sorted(shares)
    assert shares[40:] == [0.4] * 40


@given(st.integers(1, 400), st.integers(0, 9), st.integers(1, 10), st.integers(1, 5))
def test_levels_change_at_the_step_that_exact_arithmetic_says(total, start, stop, levels):
    """0.1 + 0.2 is not 0.3 in binary, but a person who writes tenths means tenths."""
    assume(start < stop)
    ramp = tuple(0.01 * (level + 1) for level in range(levels))
    schedule = window(0.4, start=start / 10, stop=stop / 10, ramp=ramp)
    for step in range(total):
        progress = Fraction(step, total)
        inside = (progress - Fraction(start, 10)) / Fraction(stop - start, 10)
        expected = 0.0 if not 0 <= inside < 1 else ramp[int(inside * 2 * levels)] if inside < Fraction(1, 2) else 0.4
        assert schedule.share(step, total) == expected


def test_window_over_all_of_training_ends_with_it():
    assert window(0.4).share(100, 100) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prune": 1.0}, r"\[0, 1\).*got 1.0"),
        ({"prune": -0.1}, "got -0.1"),
        ({"prune": float("nan")}, "got nan"),
        ({"prune": True}, "got True"),
        ({"prune": "0.4"}, "got '0.4'"),
        ({"prune": 0.4, "start": 0.5, "stop": 0.5}, "start < stop"),
        ({"prune": 0.4, "stop": 90}, "Divide"),
        ({"prune": 0.4, "ramp": (0.1, 1.5)}, "`ramp`.*got 1.5"),
        ({"prune": 0.4, "ramp": -1}, "`ramp`"),
        ({"prune": 0.4, "ramp": 10**12}, "from 0 to 1,000 .*got 1000000000000"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        window(**arguments)
