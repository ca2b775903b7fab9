"""Near-copies: found where they are known to be, and not where there are none."""

import pytest
import torch
from sklearn.datasets import load_digits

from pfb.copies.near_duplicates import find_copies
from pfb.copies.reach import in_deviations
from pfb.features.sketch import Sketch


def scenes(n, frames, singles, d=16, noise=0.01):
    centers = torch.randn(n, d)
    return torch.cat(
        [centers.repeat_interleave(frames, 0) + noise * torch.randn(n * frames, d), torch.randn(singles, d)]
    )


def test_frames_of_scenes_are_found_and_grouped_and_single_samples_are_not():
    x = scenes(30, 10, 700)
    order = torch.randperm(1000)
    found = find_copies(x[order])
    back = order.argsort()
    assert found.near[back[:300]].all()
    assert not found.near[back[300:]].any()
    assert len(found.groups) == 30
    assert len(found.keep) == 730
    scene = torch.where(order < 300, order // 10, -1)
    for group in found.groups:
        assert len(group) == 10
        assert len(set(scene[list(group)].tolist())) == 1
        assert list(group[1:]) == sorted(group[1:])
    assert (found.alike[found.near] == 10).all()
    assert (found.alike[~found.near] == 1).all()
    assert torch.equal(scene[found.nearest[found.near]], scene[found.near])
    assert torch.equal(found.distance <= 1, found.near)
    assert found.unclear < 0.01


@pytest.mark.parametrize("kind", ["gauss2", "gauss10", "gauss48", "digits", "tokens", "sequences"])
def test_clean_data_have_no_near_copies(kind):
    x = {
        "gauss2": lambda: torch.randn(1500, 2),
        "gauss10": lambda: torch.randn(1500, 10),
        "gauss48": lambda: torch.randn(1500, 48),
        "digits": lambda: torch.from_numpy(load_digits().images).float()[:, None],
        "tokens": lambda: torch.randint(50, (1000, 32)),
        "sequences": lambda: torch.randn(1000, 12, 5),
    }[kind]()
    found = find_copies(Sketch()(x), images=kind == "digits")
    assert found.near.float().mean() < 0.02
    assert len(found.keep) > 0.99 * len(x)


def test_frames_of_digits_are_found_even_where_a_few_scenes_are_all_there_is():
    digits = torch.from_numpy(load_digits().images).float()[:, None]
    for n, frames in ((100, 8), (5, 100)):
        x = digits[:n].repeat_interleave(frames, 0)
        x = x * (1 + 0.01 * torch.randn(len(x), 1, 1, 1)) + 0.03 * torch.randn_like(x)
        found = find_copies(Sketch()(x), images=True)
        assert found.near.float().mean() > 0.9


def test_text_that_repeats_is_found():
    text = torch.randint(60, (200, 40))
    x = torch.cat([text, text[:20], text[:20]])[torch.randperm(240)]
    found = find_copies(Sketch()(x))
    assert (len(found.groups), len(found.keep), int(found.near.sum())) == (20, 200, 60)


def test_the_first_of_a_group_is_the_one_that_most_are_alike_to():
    x = scenes(1, 9, 400, d=8, noise=0.0)
    x[1:9] += 0.3 * torch.nn.functional.normalize(torch.randn(8, 8), dim=1)  # around the first
    found = find_copies(x)
    assert found.groups[0][0] == 0


def test_copies_that_shade_into_the_rest_are_unclear():
    frames = scenes(30, 10, 0) + 0.3 * torch.rand(300, 1) * torch.randn(300, 16)
    found = find_copies(torch.cat([frames, torch.randn(700, 16)]))
    assert torch.equal(found.distance <= 1, found.near)
    assert found.unclear > 0.1 * found.near.float().mean()


def test_few_samples_are_copies_only_if_they_are_equal():
    x = torch.randn(12, 4)
    x[5] = x[2]
    x[6] = x[3] + 1e-4
    found = find_copies(x)
    assert found.groups == ((2, 5),)


def test_all_equal_one_group():
    found = find_copies(torch.ones(300, 6))
    assert [len(group) for group in found.groups] == [300]


def test_what_is_not_finite_is_nobodys_copy():
    x = scenes(5, 8, 200)
    x[0], x[1] = float("nan"), float("inf")
    found = find_copies(x)
    assert not found.near[:2].any()
    assert {len(group) for group in found.groups} == {6, 8}
    assert found.nearest[:2].tolist() == [0, 1]
    assert found.distance[:2].isinf().all()


@pytest.mark.parametrize("n", [0, 1])
def test_of_none_or_one_nothing_is_a_copy(n):
    found = find_copies(torch.ones(n, 3))
    assert (found.groups, len(found.keep), len(found.near)) == ((), n, n)


def test_the_order_does_not_matter():
    x = scenes(20, 6, 300)
    order = torch.randperm(len(x))
    one, two = find_copies(x), find_copies(x[order])
    assert {frozenset(group) for group in one.groups} == {
        frozenset(order[list(group)].tolist()) for group in two.groups
    }


def test_units_are_the_features_deviations_and_a_far_row_does_not_change_them():
    x = torch.randn(500, 3) * torch.tensor([1.0, 1000.0, 0.0])
    z = in_deviations(x)
    assert z.shape == (500, 2)
    assert z.std(0) == pytest.approx(1.0, abs=0.01)
    x[0] = 1e9
    assert torch.allclose(in_deviations(x)[1:, :2], z[1:], rtol=0.2, atol=0.05)


def test_progress_and_shape():
    rows = []
    find_copies(torch.randn(1100, 4), on_rows=rows.append)
    assert rows == [512, 1024, 1100]
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        find_copies(torch.ones(3))
