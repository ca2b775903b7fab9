"""The memory of neighbours: distances, order, what enters and when, and its state."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import pfb
from pfb.density import search as nearest
from pfb.features.sketch import Sketch
from tests import reference
from tests.reference import chances


def remembering(rows, size=32, batch=8):
    memory = pfb.NeighbourMemory(size)
    for part in rows.split(batch):
        memory.accumulate(part)
        memory.apply()
    return memory


def one_group_far_off():
    """A feature that is dead, one that is large, and a row far away."""
    x = torch.randn(50, 5) * torch.tensor([1.0, 1e3, 0.0, 1e-2, 1.0]) + torch.tensor([0.0, 7e4, 3.0, 0.0, 0.0])
    x[-1] = 1e9
    return x


@pytest.mark.parametrize("rows", [torch.randn(20, 3), torch.randn(75, 3), one_group_far_off()])
@pytest.mark.parametrize("size", [2, 16, 32, 601])
@pytest.mark.parametrize("piece", [1, 40, nearest.PIECE])
def test_equals_the_literal_form(rows, size, piece, monkeypatch):
    monkeypatch.setattr(nearest, "PIECE", piece)  # a few rows at once, as of a long memory
    memory, literal = remembering(rows, size), reference.Memory(size)
    for part in rows.split(8):
        literal.add(part[-size:])
    queries = torch.cat([rows[-3:] + 0.01, rows[:5], rows.mean(0, keepdim=True), rows[:2] + 0.03])
    for name in ("distance", "near_copies", "log_density"):
        got, expected = getattr(memory, name)(queries), getattr(literal, name)(queries)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected.double(), rtol=2e-3, atol=2e-3)
    own = queries + 0.1 * torch.randn(queries.shape) * rows[:-1].std(0)
    got, expected = memory.near_copies(queries, own), literal.near_copies(queries, own)
    torch.testing.assert_close(got.double(), expected.double(), rtol=2e-3, atol=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_holds_the_latest_rows_and_no_others(size, batches):
    memory, seen = pfb.NeighbourMemory(size), []
    for n in batches:
        rows = torch.arange(len(seen), len(seen) + n).float()[:, None]
        seen += rows[:, 0].tolist()
        memory.accumulate(rows)
        memory.apply()
    held = memory.state_dict()["rows"][: int(memory.summary()["remembered"]), 0].tolist()
    assert sorted(held) == seen[-size:]


def test_a_copy_is_seen_however_many_there_are_and_an_outlier_is_none():
    torch.manual_seed(1)
    few, many, single = torch.randn(1, 8), torch.randn(1, 8), torch.randn(2400, 8)
    copies = torch.cat([few.repeat(6, 1), many.repeat(1200, 1)])
    copies = copies + 0.01 * torch.randn_like(copies)
    rows = torch.cat([copies, single])[torch.randperm(3606)]
    memory = remembering(rows, 4096, batch=64)
    found = memory.near_copies(torch.cat([few, many, torch.randn(200, 8), 3 * torch.randn(200, 8)]))
    assert 6 <= found[0] < 7
    assert found[1] > 600  # of 1,200 in groups of four
    assert found[2:202].mean() < 0.2
    assert found[202:].mean() < 0.2
    distances = memory.distance(torch.cat([torch.randn(200, 8), 3 * torch.randn(200, 8)]))
    assert distances[200:].median() > 3 * distances[:200].median(), "though far from everything"


def test_a_long_memory_counts_in_larger_groups():
    torch.manual_seed(2)
    few, many = torch.randn(2, 1, 8)
    rows = torch.cat([few.repeat(6, 1), many.repeat(4000, 1), torch.randn(8186, 8)])
    memory = remembering(rows[torch.randperm(len(rows))], 12_192, batch=508)
    found = memory.near_copies(torch.cat([few, many]))
    assert 5.9 <= found[0] < 7
    assert 900 < found[1] <= 1025


def test_many_that_are_barely_near_are_no_copy():
    usual = torch.ones(3)
    distances = torch.tensor([[0.55] * 25, [0.1] + [9.0] * 24, [0.1] * 25])
    found = nearest.near_ones(distances.square(), distances.amin(1), usual)
    torch.testing.assert_close(found, torch.tensor([25 * 0.125**2, 1.0, 25.0]))


def test_far_out_products_of_matrices_count_nobody_who_is_not_near():
    """Where rows lie at 1e4 deviations, squares by products are off by more than the distances."""
    wrong, right = torch.zeros(1, 30), torch.tensor([2.0])
    assert nearest.near_ones(wrong, right, torch.ones(1)) == 0


def test_of_copies_within_a_batch_the_first_counts_in_full():
    memory = remembering(torch.randn(400, 6), 256)
    single = 4 * torch.randn(3, 6)
    assert memory.near_copies(single).tolist() == [0, 0, 0]
    broken = torch.full((1, 6), torch.nan)
    found = memory.near_copies(torch.cat([broken, single[:2], single + 1e-3, single[:1]]))
    assert found[0].isnan()
    assert found[1:].tolist() == pytest.approx([0, 0, 1, 1, 0, 2])
    assert memory.near_copies(single[:0]).shape == (0,)


def test_where_nothing_is_a_copy_a_memory_of_any_size_finds_few():
    torch.manual_seed(0)
    for size in (64, 1024, 16384):
        memory = remembering(torch.randn(size, 8), size, batch=1024)
        assert memory.near_copies(torch.randn(256, 8)).mean() < 0.2


def test_no_sample_is_its_own_neighbour_before_apply():
    memory = remembering(torch.zeros(4, 2))
    x = torch.tensor([[5.0, 5.0]])
    before = memory.distance(x)
    memory.accumulate(x)
    assert torch.equal(memory.distance(x), before)
    memory.apply()
    assert memory.distance(x) == 0


def test_until_anything_is_remembered_all_are_alike():
    memory = pfb.NeighbourMemory()
    x = torch.randn(3, 2)
    memory.apply()
    for _ in range(2):
        assert memory.distance(x).tolist() == [1, 1, 1]
        assert memory.near_copies(x).tolist() == [0, 0, 0]
        assert len(set(memory.log_density(x).tolist())) == 1
        memory.accumulate(torch.full((3, 2), torch.nan))
        memory.apply()
    assert memory.ready
    assert memory.summary() == {"remembered": 0}


def test_broken_rows_are_left_out_and_a_broken_query_says_so():
    rows = torch.randn(40, 3)
    broken = rows.clone()
    broken[[3, 20]] = torch.tensor([[torch.nan, 0, 0], [0, torch.inf, 1e30]])
    fine = remembering(rows[[i for i in range(40) if i not in (3, 20)]], 64)
    torch.testing.assert_close(remembering(broken, 64).distance(rows), fine.distance(rows))
    assert fine.distance(broken).isnan().nonzero().flatten().tolist()[0] == 3


def test_reading_changes_nothing():
    memory = remembering(torch.randn(40, 3))
    before = {k: v.clone() for k, v in memory.state_dict().items() if isinstance(v, torch.Tensor)}
    memory.distance(torch.randn(9, 3)), memory.near_copies(torch.randn(9, 3)), memory.log_density(torch.randn(9, 3))
    assert all(torch.equal(memory.state_dict()[k], v) for k, v in before.items())


def test_far_from_zero_and_in_half_precision_contexts_distances_stay_exact():
    rows = torch.randn(60, 4)
    queries = rows[:5] + 0.1 * torch.randn(5, 4)
    near = remembering(rows, 64).distance(queries)
    far = remembering(rows.double().add(1024).float(), 64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(far.distance(queries.double().add(1024).float()), near, rtol=1e-2, atol=1e-3)


def test_what_the_input_does_not_tell_apart_is_told_once():
    """All samples equal, whatever the memory's length."""
    with pytest.warns(UserWarning, match="does not tell them apart") as told:
        remembering(torch.zeros(16 * 160, 4), size=1000, batch=16)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        remembering(torch.randn(16 * 150, 4), size=1000, batch=16)


def epochs_of(x, size, epochs, batch=32, told=None):
    """Chances of copies (the first half) and singles to be kept where 40 % are stopped, in the
    last two epochs; and the memory.
    """
    memory, order_of = pfb.NeighbourMemory(size), torch.Generator().manual_seed(0)
    memory.epoch = told
    found, seen = [], []
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=order_of).split(batch):
            if epoch >= epochs - 2:
                found.append(pfb.InverseDensity().log_weights(x[rows], memory))
                seen.append(rows)
            memory.accumulate(x[rows])
            memory.apply()
    kept, order = chances(torch.cat(found), 0.6), torch.cat(seen)
    return float(kept[order < len(x) // 2].mean()), float(kept[order >= len(x) // 2].mean()), memory


def half_copies(n, width=12):
    x = torch.randn(n, width)
    x[: n // 2] = x[: n // 2 : 20].repeat_interleave(20, 0)[: n // 2] + 0.02 * x[: n // 2]
    return x


@pytest.mark.parametrize(("samples", "told"), [(500, False), (1500, False), (2300, False), (4000, False), (1500, True)])
def test_a_memory_finds_out_that_samples_meet_themselves(samples, told):
    """An epoch from a fourth to twice as long as the memory; half of the samples are 20 alike."""
    torch.manual_seed(0)
    copies, singles, memory = epochs_of(half_copies(samples), 2048, 5, told=samples if told else None)
    assert copies < 0.37
    assert singles > 0.75
    if told:
        assert memory.state_dict()["limit"] == samples // 3


def test_a_memory_that_meets_copies_alone_stays_as_long_as_it_is():
    torch.manual_seed(0)
    for length in (2, 20):
        x = torch.randn(8000 // length, 12).repeat_interleave(length, 0)
        x = (x + 0.02 * torch.randn_like(x))[torch.randperm(len(x))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory = remembering(x, 2048, batch=32)
        assert memory.state_dict()["limit"] == 2048


def test_a_shorter_memory_holds_the_latest_rows():
    memory = remembering(torch.arange(70.0)[:, None], 64, batch=10)
    memory.epoch = 60
    memory.accumulate(torch.tensor([[70.0], [71.0]]))
    memory.apply()
    held = memory.state_dict()
    assert held["limit"] == 20
    assert sorted(held["rows"][:20, 0].tolist()) == list(range(52, 72))
    memory.accumulate(torch.tensor([[72.0]]))
    memory.apply()
    assert sorted(memory.state_dict()["rows"][:20, 0].tolist()) == list(range(53, 73))


def test_a_copy_is_what_is_nearer_than_the_samples_own_views():
    torch.manual_seed(0)
    memory = remembering(torch.cat([torch.randn(240, 8), 3 + 0.1 * torch.randn(16, 8)]), 256)
    alike = 3 + 0.1 * torch.randn(9, 8)
    assert memory.near_copies(alike).min() > 0.5
    own = alike + 0.02 * torch.randn(9, 8)
    assert memory.near_copies(alike, own).max() < 0.1
    equal = torch.cat([alike[:1], alike[:1] + 1e-4])
    assert memory.near_copies(equal, equal + 0.02).round().tolist() == [0, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 10.0))
def test_own_views_make_nobody_less_alone_and_near_ones_never_count_for_more(seed, size):
    generator = torch.Generator().manual_seed(seed)
    rows, x, way = (torch.randn(n, 5, generator=generator) for n in (64, 9, 9))
    memory = remembering(rows, 64)
    plain, near, far = (memory.near_copies(x, own) for own in (None, x + size * way, x + (size + 1) * way))
    assert (near <= plain + 1e-6).all()
    assert (far >= near - 1e-6).all()
    broken = x + torch.nan
    assert torch.equal(memory.near_copies(x, broken), plain)


def test_a_state_goes_on_bit_by_bit_also_within_a_step():
    rows = torch.randn(90, 3)
    straight = remembering(rows[:40])
    straight.accumulate(rows[40:50])
    resumed = pfb.NeighbourMemory(32)
    resumed.load_state_dict(straight.state_dict())
    for memory in (straight, resumed):
        memory.accumulate(rows[50:60])
        memory.apply()
    assert torch.equal(straight.near_copies(rows[60:]), resumed.near_copies(rows[60:]))
    for name, value in straight.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(resumed.state_dict()[name])), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, r"holds 9 features, this one 32: make it with `density=pfb.NeighbourMemory\(9\)`"),
        ({"updates": -1}, "whole number >= 0"),
        ({"limit": 33}, "from 2 to 32"),
        ({"rows": [1]}, "must be tensors or None"),
        ({"rows": torch.zeros(3, 3)}, "do not belong together"),
        ({"frame": None}, "do not belong together"),
        ({"size": torch.tensor([32, 1])}, "make it with"),
        ({"pending": torch.zeros(3)}, r"`pending` must be \[P, D \+ 1\]"),
        ({"pending": torch.zeros(2, 3, 4)}, r"`pending` must be \[P, D \+ 1\]"),
        ({"pending": torch.tensor(3.0)}, r"`pending` must be \[P, D \+ 1\]"),
        ({"counts": torch.tensor([99, 5])}, "`counts` must lie within its 32 rows"),
        ({"counts": torch.tensor([-1, 5])}, "`counts` must lie within its 32 rows"),
        ({"counts": torch.tensor([1.0, 5.0])}, "`counts` must be torch.int64"),
        ({"rows": torch.zeros(32, 3, dtype=torch.int64)}, "`rows` must be torch.float32"),
    ],
)
def test_a_foreign_state_is_refused_and_changes_nothing(change, message):
    memory = remembering(torch.randn(40, 3))
    rows = memory.state_dict()["rows"].clone()
    with pytest.raises(ValueError, match=message):
        memory.load_state_dict({**memory.state_dict(), **change})
    assert torch.equal(memory.state_dict()["rows"], rows)
    with pytest.raises(ValueError, match="another density's"):
        memory.load_state_dict(pfb.MovingCenters().state_dict())
    with pytest.raises(ValueError, match="all, it is a list"):
        memory.load_state_dict([])


def test_wrong_settings_and_widths_are_refused():
    for size in (1, True, 3.0):
        with pytest.raises(ValueError, match="whole number of at least 2"):
            pfb.NeighbourMemory(size)
    memory = remembering(torch.randn(8, 3))
    with pytest.raises(ValueError, match="`own` must have the shape"):
        memory.near_copies(torch.randn(2, 3), torch.randn(1, 3))
    with pytest.raises(ValueError, match="4 dimensions, the density was built on 3"):
        memory.distance(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        memory.accumulate(torch.randn(2))


@pytest.mark.parametrize("rows", [1, 3, 1000, 6000])
def test_a_long_memory_knows_its_deviations_from_a_part_of_its_rows(rows):
    memory, x = pfb.NeighbourMemory(6000), torch.randn(rows, 3) * torch.tensor([1.0, 10.0, 0.0])
    for part in x.split(2000):
        memory.accumulate(part)
        memory.apply()
    deviation = x.std(0, correction=0)
    unit = torch.where(deviation > 0, 1 / deviation, 0.0)
    torch.testing.assert_close(memory._frame[1], unit, rtol=0.0 if rows == 1 else 0.1, atol=1e-6)


def test_whether_it_is_too_long_is_told_by_few_rows_of_a_step_since_all_distances_would_fill_a_device(monkeypatch):
    memory, asked = pfb.NeighbourMemory(100_000), []
    distance = memory.distance
    monkeypatch.setattr(memory, "distance", lambda x: asked.append(len(x)) or distance(x))
    for _ in range(64):
        memory.accumulate(torch.randn(2, 3))
        memory.apply()
    assert asked == [256]


def chances_of(x, groups, size=512, batch=64):
    """Mean chance of each group of inputs, in any order, to be kept where half are stopped."""
    memory, sketch, found = pfb.NeighbourMemory(size), Sketch(), []
    order, changes = torch.randperm(len(x)), torch.Generator().manual_seed(0)
    for rows in order.split(batch):
        features = sketch(x[rows])
        found.append(pfb.InverseDensity().log_weights(features, memory, sketch.own_view(x[rows], changes)))
        memory.accumulate(features)
        memory.apply()
    seen = order[size:]
    kept = chances(torch.cat(found)[size:], 0.5)
    return [float(kept[torch.isin(seen, group)].mean()) for group in groups]


COPIES, SINGLES = torch.arange(1250), torch.arange(1250, 2500)


def with_copies(x):
    """2,500 samples, of which the first half are 50 of them, 25 times each."""
    x[COPIES] = x[:1250:25].repeat_interleave(25, 0)
    return x


def test_a_state_that_is_most_of_the_data_is_stopped_first():
    """An idle sensor, a still camera: three in five samples are one thing with noise."""
    torch.manual_seed(0)
    x = torch.randn(2500, 12)
    x[:1500] = x[:1] + 0.05 * x[:1500]
    idle, active = chances_of(x, (torch.arange(1500), torch.arange(1500, 2500)))
    assert idle < 0.25
    assert active > 0.9


@pytest.mark.parametrize("width", [12, 100])
def test_a_column_of_large_scale_does_not_blind_the_others(width):
    """The time in seconds beside standardized columns: it is one of many, not all that counts."""
    torch.manual_seed(0)
    x = with_copies(torch.randn(2500, width))
    x[:, 3] *= 1e6
    copies, singles = chances_of(x, (COPIES, SINGLES))
    assert copies < 0.15
    assert singles > 0.85


def test_a_small_group_that_is_more_alike_than_the_rest_is_not_stopped():
    torch.manual_seed(0)
    x = torch.randn(2500, 10)
    x[:250] = 2 + 0.2 * x[:250]
    alike, others = chances_of(x, (torch.arange(250), torch.arange(250, 2500)))
    assert alike > 0.4
    assert others > 0.45


def test_a_minority_that_lies_apart_is_not_stopped():
    torch.manual_seed(0)
    x = torch.randn(2500, 10)
    x[:250] += 8
    apart, others = chances_of(x, (torch.arange(250), torch.arange(250, 2500)))
    assert apart > 0.4
    assert others > 0.45


def test_where_dimensions_are_few_the_edge_goes_on_as_often_as_the_middle():
    torch.manual_seed(0)
    x = torch.randn(2500, 5)
    order = x.square().sum(1).argsort()
    middle, edge = chances_of(x, (order[:250], order[-250:]))
    assert abs(middle - edge) < 0.1


@pytest.mark.parametrize("changed", [0.0, 0.05])
def test_of_tokens_one_in_ten_may_differ(changed):
    """Each copy differs from its original in one of twenty, so two of them in one of ten."""
    torch.manual_seed(0)
    x = with_copies(torch.randint(200, (2500, 128)))
    x = torch.where(torch.rand(x.shape) < changed, torch.randint(200, x.shape), x)
    copies, singles = chances_of(x, (COPIES, SINGLES))
    assert copies < 0.3
    assert singles > 0.7


@pytest.mark.parametrize("features", [1, 2, 6])
def test_copies_of_sequences_are_seen_however_few_features_they_have(features):
    torch.manual_seed(0)
    x = with_copies(torch.randn(2500, 64, features).cumsum(1))
    x = x + 0.01 * x.std((1, 2), keepdim=True) * torch.randn_like(x)
    copies, singles = chances_of(x, (COPIES, SINGLES))
    assert copies < 0.2
    assert singles > 0.8


def test_short_padded_sequences_are_no_copies_of_each_other():
    torch.manual_seed(0)
    x, lengths = 2 * torch.randn(2500, 1, 6) + torch.randn(2500, 60, 6), torch.randint(5, 61, (2500,))
    x[torch.arange(60) >= lengths[:, None]] = 0
    short, long = chances_of(x, (torch.nonzero(lengths < 12)[:, 0], torch.nonzero(lengths > 40)[:, 0]))
    assert short > 0.35
    assert abs(long - 0.5) < 0.1


def test_black_borders_hide_copies_and_reflected_ones_do_not():
    """A limit: the sketch averages over the whole picture, borders too."""
    torch.manual_seed(0)
    pictures = with_copies(F.interpolate(torch.rand(2500, 3, 5, 5), 32, mode="bicubic").clamp(0, 1))
    found = {}
    for mode in ("reflect", "constant"):
        wide = F.pad(pictures, (4, 4, 4, 4), mode=mode)
        shifts = torch.randint(9, (2500, 2)).tolist()
        x = torch.stack([p[:, a : a + 32, b : b + 32] for p, (a, b) in zip(wide, shifts, strict=True)])
        found[mode] = chances_of(x, [COPIES])[0]
    assert found["reflect"] + 0.05 < found["constant"]


def test_bits_given_as_whole_numbers_are_read_as_tokens():
    """A limit: runs of zeros count for nothing, so that sparse bits tell less than as a vector."""
    torch.manual_seed(0)
    x = with_copies((torch.rand(2500, 512) < 0.01).byte())
    as_tokens, as_vectors = chances_of(x, [COPIES])[0], chances_of(x.float(), [COPIES])[0]
    assert as_vectors < 0.1
    assert as_tokens > as_vectors + 0.1
