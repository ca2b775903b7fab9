"""Other readings of the paper beside ``pfb.paper``'s."""

import pytest
import torch

import pfb
from pfb.density.kernels import log_importance
from pfb.selection.selection import keep_largest
from studies import deviations
from studies.deviations import REFERENCE, Watch, compared, variants


@pytest.fixture
def centers():
    torch.manual_seed(0)
    found = pfb.MovingCenters(20)
    for _ in range(30):
        found.accumulate(torch.randn(40, 6) * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 3.0]))
        found.apply()
    return found


def test_the_reference_chooses_as_the_library_with_the_same_draw(centers):
    torch.manual_seed(1)
    features, draw = torch.randn(30, 12), torch.rand(30)
    reference = variants(12, dimensions=6)[REFERENCE]
    reference.centers = centers
    expected = keep_largest(log_importance(centers.log_density(reference.reduced(features)), 0.01 * draw), 18)
    assert torch.equal(reference.choose(features, draw, 18)[1], expected)


def test_readings_differ_in_the_bandwidth_as_they_say(centers):
    x = torch.randn(50, 6)
    by_centers = deviations.by_spread_of_centers(centers, x)
    by_batch = deviations.by_spread_of_batch(centers, x)
    assert (deviations.by_all_samples(centers, x) < centers.bandwidth).all()
    torch.testing.assert_close(deviations.factor_as_variance(centers, x).square(), centers.bandwidth)
    torch.testing.assert_close(by_centers / centers.centers.std(0), by_batch / x.std(0))
    same = deviations.with_bandwidth(lambda centers, x: centers.bandwidth)(centers, x)
    torch.testing.assert_close(same, centers.log_density(x))


def test_a_mean_of_log_kernels_is_one_gaussian_and_cannot_see_a_second_mode():
    torch.manual_seed(0)
    two = pfb.MovingCenters(100)
    two.accumulate(torch.randn(100, 2) * 0.3 + torch.tensor([[-4.0, 0.0], [4.0, 0.0]]).repeat(50, 1))
    two.apply()
    middle_and_mode = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    assert two.log_density(middle_and_mode).argmax() == 1
    assert deviations.mean_of_logs(two, middle_and_mode).argmax() == 0


def test_all_readings_choose_beside_the_one_that_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 24), torch.nn.ReLU(), torch.nn.Linear(24, 2))
    watch = Watch(dimensions=8, prune=0.4)
    with pfb.attach(model, "1", 0.4, rule=watch) as blocker:
        for _ in range(12):
            model(torch.randn(50, 5)).square().mean().backward()
            kept = watch.chosen[-1][REFERENCE][1]
            assert torch.equal(blocker.selection.indices, kept.sort().values)
            assert len(kept) == 30
            blocker.step()
    rows = {name: compared(watch.chosen[6:], name) for name in watch.variants}
    assert rows[REFERENCE]["same_kept"]["median"] == 1.0
    assert rows["another draw of the random term"]["same_kept"]["low"] < 1.0
    table = deviations.render({"variants": rows, "config": {"prune": 0.4}})
    assert table.count("\n") == len(rows) + 3
    assert "| at random | 60, by chance |" in table
