"""The public handle: when it acts, what it refuses, how it leaves."""

import copy
import gc
import io
import warnings
import weakref

import pytest
import torch
from torch import nn

import pfb
from tests import zoo

X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestActivity:
    def attached(self, prune=0.4):
        torch.manual_seed(0)
        model = zoo.SmallNet("batch")
        return model, copy.deepcopy(model), pfb.attach(model, "layer1", prune)

    x = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def same(self, model, plain):
        """Bit-identical outputs and, after them, bit-identical buffers."""
        out, expected = model(self.x), plain(self.x)
        assert torch.equal(out, expected)
        for a, b in zip(model.buffers(), plain.buffers(), strict=True):
            assert torch.equal(a, b)

    def test_evaluation(self):
        model, plain, blocker = self.attached()
        model.eval()
        plain.eval()
        self.same(model, plain)
        y = torch.arange(10)
        assert blocker.select(y) is y
        assert blocker.selection is None

    def test_no_grad(self):
        model, plain, blocker = self.attached()
        with torch.no_grad():
            self.same(model, plain)
            y = torch.arange(10)
            assert blocker.select(y) is y

    def test_prune_zero(self):
        model, plain, blocker = self.attached(prune=0.0)
        self.same(model, plain)
        y, z = torch.arange(10), {"z": torch.arange(3)}
        assert blocker.select(y) is y
        assert blocker.select(y, z)[1] is z
        blocker.step()

    def test_paused(self):
        model, plain, blocker = self.attached()
        with blocker.paused():
            self.same(model, plain)
            y = torch.arange(10)
            assert blocker.select(y) is y
        assert model(self.x).shape[0] == 6

    def test_paused_nests_and_survives_errors(self):
        model, _, blocker = self.attached()
        with blocker.paused():
            with pytest.raises(ZeroDivisionError), blocker.paused():
                raise ZeroDivisionError
            assert len(model(self.x)) == 10
        assert len(model(self.x)) == 6

    def test_update_bn(self):
        model, plain, _blocker = self.attached()
        for m in (model, plain):
            torch.optim.swa_utils.update_bn([self.x], m)
        for a, b in zip(model.buffers(), plain.buffers(), strict=True):
            assert torch.equal(a, b)

    def test_after_detach(self):
        model, plain, blocker = self.attached()
        before = hooks_of(plain)
        assert hooks_of(model) > before
        blocker.detach()
        blocker.detach()
        assert hooks_of(model) == before
        self.same(model, plain)

    def test_parts_called_on_their_own(self):
        model, plain, blocker = self.attached()
        model(self.x)
        stem = plain.stem(self.x)
        assert torch.equal(model.layer1(stem), plain.layer1(stem))
        blocker.detach()


def test_readme_loop():
    model = zoo.SmallNet("batch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    blocker = pfb.attach(model, cut="layer1", prune=0.4)
    for _ in range(5):
        x, y = torch.randn(128, 3, 8, 8), torch.randint(5, (128,))
        logits = model(x)
        assert logits.shape == (77, 5)
        loss = nn.functional.cross_entropy(logits, blocker.select(y))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        blocker.step()
    indices = blocker.selection.indices
    assert indices.dtype == torch.int64
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert blocker.selection.batch_size == 128
    assert blocker.steps == 5


def test_gradient_accumulation_moves_the_centers_by_all_micro_batches():
    """Four micro-batches and one step() end where the literal estimator does that sees all four at
    once.
    """
    model = zoo.mlp(6, 4, 3)
    chosen = []

    def remember(features):
        importance = torch.rand(len(features))
        chosen.append(features[importance.topk(keep).indices.sort().values])
        return importance

    keep = 6
    twin = pfb.MovingCenters(4, 0.5)
    blocker = pfb.attach(
        model,
        "0",
        0.4,
        rule=lambda features, estimator: remember(features),
        density=pfb.MovingCenters(4, 0.5),
    )
    for _ in range(4):
        chosen.clear()
        for _ in range(4):
            model(torch.randn(10, 6)).sum().backward()
        blocker.step()
        twin.accumulate(torch.cat(chosen))
        twin.apply()
    torch.testing.assert_close(blocker.density.centers, twin.centers)
    assert torch.equal(blocker.density.counts, twin.counts)


def test_several_forwards_do_not_disturb_each_other():
    model = zoo.mlp(6, 8, 3)
    blocker = pfb.attach(model, "0", 0.4)
    first_out = model(X)
    first = blocker.selection
    assert model(torch.randn(20, 6)).shape[0] == 12
    y = torch.arange(10)
    assert first.select(y).tolist() == first.indices.tolist()
    assert len(first_out) == 6
    assert blocker.selection.batch_size == 20
    with pytest.raises(ValueError, match="20 samples"):
        blocker.select(y)


def test_schedule_moves_with_step():
    model = zoo.mlp(6, 8, 3)
    blocker = pfb.attach(model, "0", pfb.window(0.4, start=0.25, stop=0.75, ramp=(0.2,)), total_steps=8)
    sizes, shares = [], []
    for _ in range(10):
        shares.append(blocker.prune)
        sizes.append(len(model(X)))
        if blocker.steps == 8:
            with pytest.warns(UserWarning, match="more steps than total_steps=8.*not epochs"):
                blocker.step()
        else:
            blocker.step()
    assert shares == [0, 0, 0.2, 0.2, 0.4, 0.4, 0, 0, 0, 0]
    assert sizes == [10, 10, 8, 8, 6, 6, 10, 10, 10, 10]


class TestCopies:
    def test_a_deep_copy_is_not_pruned_and_steps_nothing(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        twin = copy.deepcopy(model)
        assert len(twin(X)) == 10
        assert len(model(X)) == 6
        blocker.detach()

    def test_averaged_model(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        average = torch.optim.swa_utils.AveragedModel(model)
        model(X)
        average.update_parameters(model)
        assert len(average(X)) == 10
        assert blocker.selection.batch_size == 10

    def test_a_copy_can_be_attached_to(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        twin = copy.deepcopy(model)
        other = pfb.attach(twin, "0", 0.2)
        assert (len(model(X)), len(twin(X))) == (6, 8)
        assert blocker.selection is not other.selection

    def test_saving_the_whole_model(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        assert len(torch.load(buffer, weights_only=False)(X)) == 10
        blocker.detach()


class TestLifetime:
    def test_a_blocker_that_nobody_keeps_stays_attached(self):
        """As `def build(): ...; pfb.attach(model); return model` leaves it."""
        model = zoo.mlp(6, 8, 3)
        pfb.attach(model, "0", 0.4)
        gc.collect()
        assert len(model(X)) == 6

    def test_it_goes_with_the_model(self):
        model = zoo.mlp(6, 8, 3)
        blocker = weakref.ref(pfb.attach(model, "0", 0.4))
        assert blocker() is not None
        del model
        gc.collect()
        assert blocker() is None

    def test_context_manager_and_attaching_again(self):
        model = zoo.mlp(6, 8, 3)
        with pytest.raises(ZeroDivisionError), pfb.attach(model, "0", 0.4):
            raise ZeroDivisionError
        with pfb.attach(model, "0", 0.2) as blocker:
            assert len(model(X)) == 8
        with pytest.raises(RuntimeError, match="detached"):
            blocker.step()
        y = torch.arange(10)
        model(X)
        assert blocker.select(y) is y

    def test_attaching_twice_is_refused(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        with pytest.raises(ValueError, match="attached to this model already"):
            pfb.attach(model, "2", 0.4)
        blocker.detach()

    def test_attaching_inside_an_attached_model_is_refused(self):
        inner = zoo.mlp(6, 8, 3)
        model = nn.Sequential(inner, nn.Linear(3, 2))
        blocker = pfb.attach(inner, "0", 0.4)
        with pytest.raises(ValueError, match="already"):
            pfb.attach(model, "0", 0.4)
        blocker.detach()


class TestMistakesInTheLoop:
    def test_step_without_a_forward(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        with pytest.raises(RuntimeError, match="no forward reached the cut '0'"):
            blocker.step()

    def test_select_before_the_forward(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        with pytest.raises(RuntimeError, match="before any forward"):
            blocker.select(torch.arange(10))

    def test_targets_of_another_length(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        model(X)
        with pytest.raises(ValueError, match=r"10 samples.*\(9,\)"):
            blocker.select(torch.arange(9))

    def test_a_forgotten_select_is_told_by_pytorch(self):
        """In the words that README and docs/limits.md repeat, to be found by a search."""
        model = zoo.mlp(6, 8, 3)
        with pfb.attach(model, "0", 0.4), pytest.raises(ValueError, match=r"batch_size \(6\).*\(10\)"):
            nn.functional.cross_entropy(model(X), torch.randint(3, (10,)))

    def test_a_forgotten_select_that_broadcasts_is_told_after_twenty_steps(self):
        model = zoo.mlp(6, 8, 1)
        blocker = pfb.attach(model, "0", 0.4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(20):
                nn.functional.mse_loss(model(X), torch.rand(10)).backward()  # [6, 1] and [10]
                blocker.step()
        assert len([w for w in caught if "20 steps pruned samples and nobody read which" in str(w.message)]) == 1

    def test_forgotten_step_is_told_once(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(250):
                model(X)
                blocker.select(torch.arange(10))
        assert len([w for w in caught if "blocker.step()" in str(w.message)]) == 1

    def test_an_error_in_the_forward_leaves_a_working_model(self):
        model = zoo.mlp(6, 8, 3)
        blocker = pfb.attach(model, "0", 0.4)
        with pytest.raises(RuntimeError):
            model(torch.randn(10, 7))
        assert len(model(X)) == 6
        model.eval()
        assert len(model(X)) == 10
        blocker.detach()

    def test_data_parallel_is_refused(self):
        with pytest.raises(TypeError, match="DistributedDataParallel"):
            pfb.attach(nn.DataParallel(zoo.mlp(6, 8, 3)), "module.0", 0.4)


def test_stats_are_plain_floats():
    model = zoo.mlp(6, 8, 3)
    blocker = pfb.attach(model, "0", 0.4, density=pfb.MovingCenters(4, 0.5))
    assert blocker.stats == {"step": 0.0, "kept_share": 1.0, "pruned_share": 0.0, "centers_in_use": 0.0}
    for _ in range(4):
        model(X)
        blocker.step()
    stats = blocker.stats
    assert all(type(v) is float for v in stats.values())
    assert (stats["kept_share"], stats["pruned_share"]) == (0.6, 0.4)
    assert 1 <= stats["centers_in_use"] <= 4
    quantiles = [stats[f"log_density_{q}"] for q in ("05", "25", "50", "75", "95")]
    assert quantiles == sorted(quantiles)


def test_streaming_data_needs_no_index():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            generator = torch.Generator().manual_seed(0)
            for _ in range(100):
                yield torch.randn(6, generator=generator), torch.randint(3, (), generator=generator)

    model = zoo.mlp(6, 8, 3)
    with pfb.attach(model, "0", 0.5, density=pfb.MovingCenters(8)) as blocker:
        kept = []
        for x, y in torch.utils.data.DataLoader(Stream(), batch_size=32):
            kept.append(len(model(x)))
            assert len(blocker.select(y)) == kept[-1]
            blocker.step()
    assert kept == [16, 16, 16, 2], "the last batch holds four samples"
