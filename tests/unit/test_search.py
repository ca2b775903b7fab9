"""What is usual, by all groups of rows or by some."""

import math

import pytest
import torch

from pfb.density import search as nearest


def literal(squares_NM, filled, group):
    """Nine in ten groups, one after another."""
    least = [squares_NM[:, at : at + group].amin(1) for at in range(0, filled, group)]
    return torch.stack(least, 1).sort(1).values[:, (len(least) - 1) * 9 // 10]


def usual_square(squares_NM, filled, group):
    return nearest.usual_square(nearest.least_of_groups(squares_NM, group), filled, group)


def squares(rows, filled):
    made = torch.rand(5, rows, generator=torch.Generator().manual_seed(rows))
    made[:, filled:] = math.inf
    return made


@pytest.mark.parametrize(("rows", "filled"), [(8, 8), (30, 30), (30, 1), (30, 17), (4096, 4096), (9001, 4096)])
@pytest.mark.parametrize("group", [1, 4])
def test_as_long_as_all_groups_are_looked_at_it_is_the_literal_form(rows, filled, group):
    filled = min(filled, nearest.GROUPS * group)
    given = squares(rows, filled)
    got = usual_square(given, torch.tensor(filled), group)
    assert torch.equal(got, literal(given, filled, group))


def test_of_more_groups_some_tell_nearly_the_same():
    given = squares(40_000, 33_333)
    got, expected = usual_square(given, torch.tensor(33_333), 4), literal(given, 33_333, 4)
    below = [(given[i, :33_332].view(-1, 4).amin(1) <= got[i]).float().mean() for i in range(5)]
    assert not torch.equal(got, expected)
    assert all(0.87 < share < 0.93 for share in below)


def test_nothing_is_usual_while_nothing_is_there():
    assert usual_square(squares(30, 0), torch.tensor(0), 4).isneginf().all()


@pytest.mark.parametrize("rows", [1, 30, 4096, 4097, 65_536, 1_000_001])
@pytest.mark.parametrize("group", [1, 3, 4])
def test_rows_are_taken_in_whole_groups_and_few_pieces(rows, group):
    for device, least in (("cpu", 2048), ("cuda", 65_536)):
        size = nearest.rows_at_once(rows, group, torch.device(device))
        assert size % group == 0
        assert -(-rows // size) <= 32
        assert least <= size <= max(least, rows // 32 + 1) + group
