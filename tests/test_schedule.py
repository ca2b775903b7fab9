"""The pruned share over training."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfb import window
from pfb.schedule import constant


def test_constant():
    assert {constant(0.3).share(step, None) for step in range(10)} == {0.3}


@given(st.integers(1, 500), st.floats(0, 0.45), st.floats(0.55, 1.0))
def test_outside_the_window_all_samples_train(total, start, stop):
    schedule = window(0.4, start=start, stop=stop)
    for step in range(total + 1):
        inside = start <= step / total < stop
        assert schedule.share(step, total) == (0.4 if inside else 0.0)


def test_ramp_takes_few_levels_in_the_first_half():
    shares = [window(0.4, ramp=4).share(step, 80) for step in range(80)]
    assert sorted(set(shares)) == [0.08, 0.16, 0.24, 0.32, 0.4]
    assert shares == sorted(shares)
    assert shares[40:] == [0.4] * 40


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
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        window(**arguments)
