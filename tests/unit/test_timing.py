"""Steps timed in turn: which follows which."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from pfb.utils.timing import in_another_order, interleaved_seconds


@pytest.mark.parametrize("n", range(1, 10))
def test_each_follows_every_other_equally_often(n):
    """A step that follows a full one is slower on a CPU than one that follows a small one."""
    names = "abcdefghi"[:n]
    rounds = [in_another_order(names, number) for number in range(n if n % 2 == 0 else 2 * n)]
    assert all(sorted(order) == list(names) for order in rounds)
    follows = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) <= 1


def test_steps_are_timed_in_that_order():
    done = []
    steps = {name: lambda name=name: done.append(name) for name in "abcd"}
    interleaved_seconds(steps, torch.device("cpu"), repeats=3, warmup=1)
    assert "".join(done) == "adbcbacdcbdadcab"
