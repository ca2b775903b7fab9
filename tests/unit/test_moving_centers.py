"""The moving centers against the literal version, and their properties."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfb import MovingCenters
from tests import reference

seeds = st.integers(0, 2**31 - 1)


def fed(batches, n_centers=6, beta=0.1):
    estimator = MovingCenters(n_centers, beta)
    for batch in batches:
        estimator.accumulate(batch)
        estimator.apply()
    return estimator


@given(seed=seeds, n=st.integers(3, 20), steps=st.integers(3, 12), d=st.integers(1, 6))
def test_matches_the_literal_update(seed, n, steps, d):
    g = torch.Generator().manual_seed(seed)
    literal = reference.Estimator(n_centers=6, beta=0.1)
    batches = [torch.randn(n, d, generator=g) + torch.arange(d) for _ in range(steps)]
    for batch in batches:
        literal.step(batch)
    estimator = fed(batches)
    if not literal.centers:
        assert not estimator.ready
        return
    torch.testing.assert_close(estimator.centers.double(), torch.tensor(literal.centers).double(), rtol=1e-4, atol=1e-4)
    assert estimator.counts.tolist() == literal.counts
    torch.testing.assert_close(
        estimator.variance.double(), torch.tensor(literal.variance).double(), rtol=1e-3, atol=1e-4
    )
    x = torch.randn(8, d, generator=g)
    torch.testing.assert_close(estimator.log_density(x).double(), literal.log_density(x), rtol=1e-3, atol=1e-2)


@given(seed=seeds)
def test_centers_stay_inside_the_data(seed):
    g = torch.Generator().manual_seed(seed)
    batches = [torch.rand(32, 3, generator=g) * 2 - 1 for _ in range(10)]
    estimator = fed(batches, n_centers=8, beta=0.3)
    assert estimator.centers.abs().max() <= 1.0
    assert int(estimator.counts.sum()) == 8 + 9 * 32  # every sample counts once, repeated centers included


def test_accumulating_in_parts_equals_accumulating_at_once():
    first, *batches = torch.randn(4, 20, 3).unbind()
    parts, whole = fed([first]), fed([first])
    for batch in batches:
        parts.accumulate(batch)
    whole.accumulate(torch.cat(batches))
    parts.apply()
    whole.apply()
    torch.testing.assert_close(parts.centers, whole.centers)
    torch.testing.assert_close(parts.variance, whole.variance)
    assert torch.equal(parts.counts, whole.counts)


def test_reading_and_collecting_change_no_density():
    estimator = fed(torch.randn(5, 20, 3).unbind())
    x = torch.randn(7, 3)
    before = estimator.log_density(x)
    estimator.accumulate(torch.randn(20, 3))
    assert torch.equal(estimator.log_density(x), before)
    estimator.apply()
    assert not torch.equal(estimator.log_density(x), before)


def test_all_densities_are_equal_until_centers_exist():
    estimator = MovingCenters(n_centers=64)
    estimator.accumulate(torch.randn(20, 3))
    estimator.apply()
    assert not estimator.ready
    assert estimator.log_density(torch.randn(4, 3)).tolist() == [0.0] * 4


def test_an_empty_step_changes_nothing():
    estimator = fed(torch.randn(3, 20, 3).unbind())
    before = {k: v.clone() for k, v in estimator.state_dict().items() if isinstance(v, torch.Tensor)}
    estimator.apply()
    for name, value in before.items():
        assert torch.equal(estimator.state_dict()[name], value), name


def test_a_dead_channel_is_left_out():
    x = torch.randn(6, 40, 3)
    with_dead = torch.cat([x, torch.full((6, 40, 1), 7.0)], dim=2)
    plain, dead = fed(x.unbind()), fed(with_dead.unbind())
    assert dead.bandwidth[3] == 0
    probe = torch.randn(9, 3)
    ranking = plain.log_density(probe).argsort()
    dead_density = dead.log_density(torch.cat([probe, torch.full((9, 1), 7.0)], dim=1))
    assert dead_density.isfinite().all()
    assert torch.equal(dead_density.argsort(), ranking)


def test_constant_features_give_equal_densities():
    estimator = fed([torch.ones(20, 3)] * 3)
    assert estimator.log_density(torch.ones(5, 3)).unique().numel() == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("when", ["seeding", "later"])
def test_broken_samples_never_reach_the_centers(bad, when):
    clean = torch.randn(20, 3)
    broken = torch.cat([clean, torch.tensor([[bad, 0.0, 0.0]])])
    batches = [broken, clean, clean] if when == "seeding" else [clean, broken, clean]
    estimator = fed(batches)
    expected = fed([clean, clean, clean])
    assert torch.equal(estimator.centers, expected.centers)
    assert torch.equal(estimator.counts, expected.counts)
    assert estimator.log_density(broken)[-1].isnan()


def test_features_in_half_precision_and_under_autocast_are_scored_in_float32():
    estimator = fed([b.bfloat16() for b in torch.randn(4, 20, 3)])
    assert estimator.centers.dtype == torch.float32
    x = torch.randn(9, 3)
    expected = estimator.log_density(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(estimator.log_density(x), expected)
        estimator.accumulate(x)
    estimator.apply()
    assert estimator.centers.dtype == torch.float32


def test_state_round_trip_also_between_accumulate_and_apply():
    g = torch.Generator().manual_seed(0)
    batches = torch.randn(6, 20, 3, generator=g).unbind()
    original = fed(batches[:3])
    original.accumulate(batches[3])
    copy = MovingCenters(6, 0.1)
    copy.load_state_dict(original.state_dict())
    for estimator in (original, copy):
        estimator.apply()
        estimator.accumulate(batches[4])
        estimator.apply()
    assert torch.equal(original.centers, copy.centers)
    x = torch.randn(4, 3)
    assert torch.equal(original.log_density(x), copy.log_density(x))


def test_state_round_trip_while_seeding():
    original = MovingCenters(30)
    original.accumulate(torch.randn(20, 3))
    copy = MovingCenters(30)
    copy.load_state_dict(original.state_dict())
    batch = torch.randn(20, 3)
    for estimator in (original, copy):
        estimator.apply()
        estimator.accumulate(batch)
        estimator.apply()
    assert copy.ready
    assert torch.equal(original.centers, copy.centers)


def test_no_tensor_with_all_three_axes_is_made():
    """The literal implementation needs [C, D, N]; ours must never allocate as much."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    c, d, n = 16, 32, 24
    estimator = fed(torch.randn(3, n, d).unbind(), n_centers=c)
    with Sizes():
        estimator.log_density(torch.randn(n, d))
        estimator.accumulate(torch.randn(n, d))
        estimator.apply()
    assert 0 < largest < c * d * n / 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingCenters(1), "at least 2"),
        (lambda: MovingCenters(8.0), "whole number"),
        (lambda: MovingCenters(8, beta=0), "rate in"),
        (lambda: MovingCenters(8, beta=1.5), "got 1.5"),
        (lambda: MovingCenters().log_density(torch.zeros(3)), r"\[N, D\]"),
        (lambda: fed(torch.randn(3, 20, 3).unbind()).log_density(torch.zeros(2, 4)), "4 dimensions"),
        (lambda: MovingCenters(8).load_state_dict({"centers": None}), "lacks"),
        (lambda: MovingCenters(8).load_state_dict(MovingCenters(9).state_dict()), "n_centers=9"),
    ],
)
def test_errors_name_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def ranks(x):
    return x.argsort().argsort().float()


def alike(a, b):
    """Spearman's correlation."""
    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


class TestOneFiniteOutlier:
    """A single value far outside must not decide for all others."""

    def stream(self, steps=120):
        g = torch.Generator().manual_seed(0)
        return list(torch.randn(steps, 32, 4, generator=g).unbind()), torch.randn(200, 4, generator=g)

    @pytest.mark.parametrize("far", [1e5, 1e6, 1e15])
    @pytest.mark.parametrize("when", [0, 20])
    def test_the_order_of_densities_stays(self, far, when):
        batches, x = self.stream()
        undisturbed = fed(batches, n_centers=32).log_density(x)
        batches[when] = batches[when].clone()
        batches[when][3] = far
        assert alike(fed(batches, n_centers=32).log_density(x), undisturbed) > 0.9

    def test_a_value_whose_square_is_infinite_leaves_the_variance_alone(self):
        batches, x = self.stream(40)
        for when in (0, 20):
            disturbed = [batch.clone() for batch in batches]
            disturbed[when][3] = 3e38
            estimator = fed(disturbed, n_centers=16)
            assert estimator.variance.isfinite().all()
            assert estimator.log_density(x).std() > 0.1, "it can tell samples apart"

    def test_a_scale_that_really_changes_is_followed(self):
        g = torch.Generator().manual_seed(0)
        small = [torch.randn(32, 4, generator=g) for _ in range(20)]
        large = [100 * torch.randn(32, 4, generator=g) for _ in range(100)]
        estimator = fed([*small, *large], n_centers=16)
        assert 30 < float(estimator.variance.sqrt().mean()) < 150


def test_rows_before_the_centers_exist_are_not_kept_beyond_need():
    """A step() that is never called would keep the features of every forward."""
    estimator = MovingCenters(8)
    for _ in range(100):
        estimator.accumulate(torch.randn(5, 3))
    assert sum(map(len, estimator.state_dict()["seeds"])) <= 8 + 5


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"updates": "7"}, "`updates` must be a whole number"),
        ({"updates": -1}, "`updates` must be a whole number"),
        ({"updates": True}, "`updates` must be a whole number"),
        ({"seeds": None}, "`seeds` must be a list of tensors"),
        ({"seeds": [torch.zeros(3)]}, "`seeds` must be a list of tensors"),
        ({"seeds": ["x"]}, "`seeds` must be a list of tensors"),
        ({"counts": [1, 2]}, "must be tensors all, or None all"),
        ({"pending": torch.zeros(3)}, "do not belong together|must be tensors all"),
        ({"mean": torch.zeros(())}, "do not belong together|must be tensors all"),
        ({"centers": torch.zeros(7)}, "do not belong together|must be tensors all"),
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(spoil, message, ready):
    estimator = fed(torch.randn(3 if ready else 1, 20 if ready else 3, 3).unbind())
    assert estimator.ready is ready
    before = copy.deepcopy(estimator.state_dict())
    with pytest.raises(ValueError, match=message):
        estimator.load_state_dict({**before, **spoil})
    for name, value in estimator.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="it is a (NoneType|list|str|int); it is damaged or not a density state"):
        MovingCenters(8).load_state_dict(state)


@given(seed=seeds, n=st.integers(1, 30), steps=st.integers(0, 6), between=st.booleans())
def test_a_state_continues_as_if_it_had_not_been_saved(seed, n, steps, between):
    g = torch.Generator().manual_seed(seed)
    original = fed([torch.randn(n, 3, generator=g) for _ in range(steps)], n_centers=8)
    if between:
        original.accumulate(torch.randn(n, 3, generator=g))
    twin = MovingCenters(8, 0.1)
    twin.load_state_dict(copy.deepcopy(original.state_dict()))
    batch, x = torch.randn(9, 3, generator=g), torch.randn(5, 3, generator=g)
    for estimator in (original, twin):
        for _ in range(2):
            estimator.accumulate(batch)
            estimator.apply()
    assert torch.equal(original.log_density(x), twin.log_density(x))
