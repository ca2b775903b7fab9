"""Rows that belong together go on together or not at all: views, pairs, triplets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pfb
from pfb.selection.views import Views, undeclared
from tests import zoo


def stacked(n, count, noise=0.05, d=6):
    sample = torch.randn(n, d)
    return torch.cat([sample + noise * torch.randn(n, d) for _ in range(count)])


def interleaved(n, count, noise=0.05, d=6):
    return stacked(n, count, noise, d).view(count, n, d).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("importance", [None, pfb.Uniform()], ids=["rare", "uniform"])
def test_stacked_views_stay_in_step(count, importance):
    model = zoo.mlp(6, 8, 4)
    with pfb.attach(model, "1", 0.4, views=count, rule=importance) as blocker:
        out = model(stacked(10, count))
        kept = (blocker.selection.indices % 10).view(count, -1)
        assert len(out) == 6 * count
        assert all(torch.equal(kept[0], view) for view in kept)
        assert blocker.select(torch.arange(10 * count)).tolist() == blocker.selection.indices.tolist()


@pytest.mark.parametrize("count", [2, 3])
def test_interleaved_views_stay_side_by_side(count):
    model = zoo.mlp(6, 8, 4)
    with pfb.attach(model, "1", 0.4, views=pfb.Views(count, interleaved=True)) as blocker:
        model(interleaved(10, count))
        groups = blocker.selection.indices.view(-1, count)
        assert len(groups) == 6
        assert torch.equal(groups, groups[:, :1] // count * count + torch.arange(count))


def test_the_group_is_judged_by_the_mean_of_its_views():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(1, 1))
    rule = {"rule": lambda features: features[:, 0]}
    with pfb.attach(model, "0", 0.5, views=2, **rule) as blocker:
        model(torch.tensor([[9.0], [1.0], [2.0], [3.0], [-9.0], [1.0], [2.0], [3.0]]))  # means 0, 1, 2, 3
        assert blocker.selection.indices.tolist() == [2, 3, 6, 7]


def test_the_density_counts_groups():
    model = zoo.mlp(6, 8, 4)
    with pfb.attach(model, "1", 0.5, views=2, density=pfb.MovingCenters(4)) as blocker:
        for _ in range(2):
            model(stacked(10, 2))
            blocker.step()
        assert int(blocker.density.counts.sum()) == 4 + 5


def test_a_batch_of_no_whole_number_of_groups_is_refused():
    model = zoo.mlp(6, 8, 4)
    with pfb.attach(model, "1", views=2), pytest.raises(ValueError, match="21 rows holds no whole"):
        model(torch.randn(21, 6))


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "two"])
def test_the_number_is_checked(wrong):
    with pytest.raises(ValueError, match="`views` must be a whole number"):
        pfb.attach(zoo.mlp(6, 8, 4), "1", views=wrong)


@given(st.integers(1, 6), st.integers(0, 12), st.booleans(), st.data())
def test_rows_of_groups_are_ascending_and_whole(count, groups, near, data):
    chosen = sorted(data.draw(st.sets(st.integers(0, max(groups - 1, 0)), max_size=groups)))
    views = Views(count, near)
    rows = views.rows(torch.tensor(chosen, dtype=torch.int64), groups * count).tolist()
    group_of = [row // count if near else row % groups for row in rows]
    assert rows == sorted(set(rows))
    assert sorted(group_of) == sorted(chosen * count)


class TestUndeclaredViews:
    @pytest.mark.parametrize("make", [stacked, interleaved])
    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_they_are_told_with_what_to_declare(self, make, count):
        model = zoo.mlp(6, 8, 4)
        declared = f"views={count}`" if make is stacked else rf"views=pfb.Views\(count={count}, interleaved=True\)"
        blocker = pfb.attach(model, "1")
        with pytest.warns(UserWarning, match=f"alike as views.*{declared}"):
            model(make(16, count))
        blocker.detach()

    def test_declared_ones_are_not_told(self):
        model = zoo.mlp(6, 8, 4)
        with pfb.attach(model, "1", views=2):
            model(stacked(16, 2))

    def test_paused_nobody_looks(self):
        model = zoo.mlp(6, 8, 4)
        with pfb.attach(model, "1") as blocker, blocker.paused():
            model(stacked(16, 2))

    @pytest.mark.parametrize("n", [16, 32, 33, 64, 128])
    def test_ordinary_batches_of_every_size_give_no_alarm(self, n):
        for seed in range(40):
            x = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))
            assert undeclared(x) is None
            assert undeclared(x.mean(1, keepdim=True)) is None, "a rule that reads nothing sees one number"

    def test_neither_do_batches_with_duplicates(self):
        for seed in range(40):
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(32, 8, generator=g)
            assert undeclared(torch.cat([x, x])[torch.randperm(64, generator=g)]) is None
            assert undeclared(x[torch.randint(32, (64,), generator=g)]) is None, "drawn with replacement"

    def test_nor_sorted_ones(self):
        for seed in range(20):
            g = torch.Generator().manual_seed(seed)
            by_class = torch.randn(8, 8, generator=g).repeat_interleave(8, 0) * 3 + torch.randn(64, 8, generator=g)
            walk = torch.randn(64, 8, generator=g).cumsum(0)  # frames in the order of time
            assert undeclared(by_class) is None
            assert undeclared(walk) is None

    def test_nor_constant_broken_or_tiny_ones(self):
        assert undeclared(torch.ones(64, 8)) is None
        assert undeclared(torch.full((64, 8), torch.nan)) is None
        assert undeclared(stacked(4, 2)) is None, "too few to tell"
        assert undeclared(torch.zeros(0, 8)) is None
