"""The one-line tool: what it selects, judges, remembers and refuses."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pfb
from pfb.pruning import batch_pruner
from pfb.selection.selection import keep_count
from tests import reference

N = 12
Pair = namedtuple("Pair", "image label")


@dataclass
class Batch:
    image: torch.Tensor
    name: list


def images(n=N, seed=0, channels=3):
    return torch.rand(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def rows(n=N):
    return torch.arange(n)


class TestStructures:
    """Row numbers go through every part; they must agree everywhere."""

    @pytest.mark.parametrize("prune", [0.25, 0.5, 0.9])
    def test_all_parts_belong_together(self, prune):
        batch = {
            "image": images(),
            "row": rows(),
            "column": rows()[:, None].float(),
            "array": np.arange(N),
            "texts": [f"text {i}" for i in range(N)],
            "dicts": [{"box": torch.full((i % 3, 4), float(i)), "id": i} for i in range(N)],
            "pair": Pair(rows(), rows().double()),
            "data": Batch(images(seed=1), [str(i) for i in range(N)]),
            "nested": [rows(), (rows(), {"deep": rows()})],
            "scale": 0.5,
            "size": (8, 8),
            "nothing": None,
        }
        pruner = pfb.BatchPruner(prune)
        for _ in range(3):
            kept = pruner(batch)
            expected = pruner.selection.indices.tolist()
            assert len(expected) == keep_count(N, prune)
            assert kept["row"].tolist() == kept["column"][:, 0].tolist() == kept["array"].tolist() == expected
            assert kept["texts"] == [f"text {i}" for i in expected]
            assert [d["id"] for d in kept["dicts"]] == expected
            assert [len(d["box"]) for d in kept["dicts"]] == [i % 3 for i in expected]
            assert kept["pair"].image.tolist() == kept["pair"].label.tolist() == expected
            assert kept["data"].name == [str(i) for i in expected]
            assert torch.equal(kept["data"].image, batch["data"].image[expected])
            assert kept["nested"][1][1]["deep"].tolist() == expected
            assert (kept["scale"], kept["size"], kept["nothing"]) == (0.5, (8, 8), None)
            assert torch.equal(kept["image"], batch["image"][expected])

    def test_several_arguments_come_back_as_a_tuple_and_one_as_itself(self):
        pruner = pfb.BatchPruner(0.5)
        x, y = pruner(images(), rows())
        assert len(x) == len(y) == 6
        assert isinstance(pruner([images(), rows()]), list)
        assert pruner(images()).shape == (6, 3, 8, 8)

    def test_three_samples_in_a_triple_are_no_list_of_samples(self):
        x, y, z = pfb.BatchPruner(0.3)((images(3), rows(3), rows(3)))
        assert len(x) == len(y) == len(z) == 3
        x, y, z = pfb.BatchPruner(0.4)((images(3), rows(3), rows(3)))
        assert y.tolist() == z.tolist()
        assert len(x) == 2

    def test_a_list_of_images_is_the_batch_also_alone(self):
        sizes = [torch.rand(3, 8 + i, 9) for i in range(6)]
        pruner = pfb.BatchPruner(0.5)
        kept = pruner(sizes)
        assert [x.shape[1] - 8 for x in kept] == pruner.selection.indices.tolist()
        kept, targets = pruner(sizes, [{"boxes": torch.zeros(i, 4)} for i in range(6)])
        assert [len(t["boxes"]) for t in targets] == pruner.selection.indices.tolist()
        assert len(kept) == 3

    def test_the_very_objects_come_back_where_nothing_is_left_out(self):
        x, y = images(), rows()
        for pruner in (
            pfb.BatchPruner(0.0),
            pfb.BatchPruner(0.05),
            pfb.BatchPruner(pfb.window(0.5, 0.5), total_steps=9),
        ):
            assert pruner(x, y)[0] is x
            assert pruner(x) is x
            assert pruner.steps == 2
        pruner = pfb.BatchPruner(0.5)
        with pruner.paused():
            batch = {"x": x}
            assert pruner(batch) is batch
        assert pruner.steps == 0
        assert len(pruner(x)) == 6

    @pytest.mark.parametrize(("n", "kept"), [(0, 0), (1, 1), (2, 2), (3, 2), (10, 2)])
    def test_small_batches_keep_two(self, n, kept):
        assert len(pfb.BatchPruner(0.9)(images(n))) == kept

    def test_memory_format_and_graph_are_kept(self):
        x = images().to(memory_format=torch.channels_last).requires_grad_()
        kept = pfb.BatchPruner(0.5)(x * 1)
        assert kept.is_contiguous(memory_format=torch.channels_last)
        kept.sum().backward()
        assert (x.grad.sum((1, 2, 3)) > 0).sum() == 6


class TestPlacesThatCannotBeTold:
    def test_another_number_of_rows_is_refused_with_its_place_and_the_way_out(self):
        pruner = pfb.BatchPruner(0.5)
        with pytest.raises(ValueError, match=r"`batch\['grid'\]`.*12 samples.*\(5, 2\).*`shared=\('grid',\)`"):
            pruner({"image": images(), "grid": torch.zeros(5, 2)})
        assert pruner.steps == 0
        assert pruner.density.state_dict()["pending"] is None, "a batch that is refused leaves no trace"

    def test_shared_dims_and_items(self):
        pruner = pfb.BatchPruner(0.5, shared="grid", dims={"position_ids": 1}, items=["cloud"])
        batch = {
            "image": images(),
            "grid": torch.zeros(5, 2),
            "position_ids": rows().expand(3, N),
            "cloud": rows() // 4,
        }
        kept = pruner(batch)
        assert kept["grid"] is batch["grid"]
        assert kept["position_ids"].shape == (3, 6)
        assert kept["position_ids"][0].tolist() == pruner.selection.indices.tolist()

    def test_positions_are_names_too(self):
        x, grid = pfb.BatchPruner(0.5, shared=1)(images(), torch.zeros(5))
        assert (len(x), len(grid)) == (6, 5)

    def test_a_name_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match=r"got 'grit'; there are 'grid', 'image'"):
            pfb.BatchPruner(0.5, shared="grit")({"image": images(), "grid": torch.zeros(5)})

    @pytest.mark.parametrize(
        "flat",
        [
            {"batch_idx": torch.zeros(N), "cls": torch.zeros(N, 1)},
            {"targets_flat": torch.cat([(rows() // 2 * 2)[:, None].float(), torch.rand(N, 4)], 1)},
            {"batch": rows() // 3},
            {"targets": torch.cat([rows()[:, None].float(), torch.rand(N, 4)], 1)},
            {"targets": torch.cat([(torch.arange(30) // 3)[:, None].float(), torch.rand(30, 4)], 1)},
            {"batch_idx": [0, 0, 1, 3, 5, 5, 5], "names": list("abcdefg")},
        ],
    )
    def test_flat_targets_of_as_many_rows_by_chance_are_refused(self, flat):
        with pytest.raises(ValueError, match=r"looks like a flat list.*items="):
            pfb.BatchPruner(0.5)({"image": images(), **flat})

    @pytest.mark.parametrize(
        "names",
        [
            {"captions": [f"{i}" for i in range(5 * N)]},
            {"objects": [{"id": i} for i in range(2 * N)]},
            {"boxes": [[0, 0, 1, 1]] * (2 * N)},
        ],
    )
    def test_flat_lists_of_several_values_of_each_are_refused(self, names):
        (name,) = names
        with pytest.raises(TypeError, match=rf"`batch\['{name}'\]` holds \d+ values for {N} samples.*`shared=`"):
            pfb.BatchPruner(0.5)({"image": images(), **names})
        assert pfb.BatchPruner(0.5, shared=name)({"image": images(), **names})[name] is names[name]

    def test_a_flat_list_is_known_by_its_changing_length(self):
        pruner = pfb.BatchPruner(0.5)
        pruner({"image": images(), "names": ["a"] * 17, "classes": ["c"] * 10})
        with pytest.raises(TypeError, match=r"\['names'\].*some of each \(before, it held 17\)"):
            pruner({"image": images(), "classes": ["c"] * 10, "names": ["a"] * 19})
        pruner({"image": images(5), "names": ["a"] * 17, "classes": ["c"] * 10})

    @pytest.mark.parametrize(
        ("batch", "says"),
        [
            ({"cu_seqlens": torch.arange(0, 8 * N + 1, 8)}, "prune before the texts are packed"),
            ({"num_items_in_batch": 7}, "counts the whole batch.*count after pruning"),
            ({"w": torch.rand(10)}, r"all samples share it, name it: `shared=\('w',\)`"),
            ({"p": torch.zeros(3, N, 5)}, r"`dims=\{'p': 1\}`"),
            ({"neg": torch.zeros(2 * N, 5)}, rf"2 rows of each sample, reshape it to \[{N}, ...\]"),
            ({"y": torch.zeros(N // 2)}, rf"2 rows of each of {N // 2} samples, reshape it to \[{N // 2}, ...\]"),
        ],
    )
    def test_what_belongs_to_the_whole_batch_is_refused_with_a_way_out_that_works(self, batch, says):
        (name,) = batch
        with pytest.raises(ValueError, match=rf"`batch\['{name}'\]`.*{says}"):
            pfb.BatchPruner(0.5)({"image": images(), **batch})
        dims = {"p": 1} if name == "p" else None
        ours = pfb.BatchPruner(0.5, shared=() if dims else name, dims=dims)
        kept = ours({"image": images(), **batch})[name]
        assert kept.shape == (3, 6, 5) if dims else kept is batch[name]

    @pytest.mark.parametrize(
        "batch",
        [
            (images(16), torch.randperm(16, generator=torch.Generator().manual_seed(0))),  # a class once each
            {"image": images(), "image_idx": torch.tensor([5, 900, 31, 2, 77, 78, 4000, 8, 1, 12, 13, 60])},
            (images(4), torch.tensor([[0, 1.0], [0, 1], [1, 0], [1, 0]])),  # classes in order
            {"image": images(), "classes": [f"c{i}" for i in range(10)], "size": (8, 8), "mean": [0.5] * 3},
        ],
    )
    def test_ordinary_first_batches_pass(self, batch):
        pfb.BatchPruner(0.5)(batch)

    def test_what_all_share_is_refused_once_a_batch_has_another_size(self):
        pruner, anchors = pfb.BatchPruner(0.5), torch.rand(N, 2)
        assert len(pruner({"image": images(), "anchors": anchors})["anchors"]) == 6
        with pytest.raises(ValueError, match=r"`batch\['anchors'\]`.*`shared=\('anchors',\)`"):
            pruner({"image": images(10), "anchors": anchors})

    def test_labels_may_be_sorted(self):
        pruner = pfb.BatchPruner(0.5)
        pruner({"image": images(), "label": rows() // 3})
        pruner(images(), rows())

    def test_what_cannot_be_selected_from(self):
        nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)] * 2, layout=torch.jagged)
        with pytest.raises(TypeError, match=r"`batch\[1\]` is a nested tensor"):
            pfb.BatchPruner(0.5)(images(4), nested)
        packed = nn.utils.rnn.pack_sequence([torch.zeros(2, 3)] * 4)
        with pytest.raises(TypeError, match=r"`batch\[1\]` is a PackedSequence"):
            pfb.BatchPruner(0.5)(images(4), packed)


class TestJudging:
    def test_near_duplicates_are_left_out(self):
        torch.manual_seed(0)
        base, pruner, copies = torch.rand(8, 3, 16, 16), pfb.BatchPruner(0.5), 0
        for step in range(60):
            x = torch.cat([base + 0.005 * torch.randn_like(base), torch.rand(8, 3, 16, 16)])
            pruner(x)
            if step >= 20:
                copies += int((pruner.selection.indices < 8).sum())
        assert copies / (40 * 8) < 0.35, "of the copies few are kept, of the others most"
        assert 0.3 < pruner.stats["copy_share"] < 0.7

    @pytest.mark.parametrize(
        ("batch", "judged"),
        [
            ({"gps": torch.rand(N, 3), "image": images()}, "batch['image']"),
            (
                {"label": rows(), "tokens": torch.randint(99, (N, 7)), "attention_mask": torch.ones(N, 7).long()},
                "tokens",
            ),
            ((torch.rand(N, 5, 4), torch.rand(N, 3)), "batch[0]"),
            ((torch.rand(N, 3), images()), "batch[1]"),
            ({"prompt": torch.ones(N, 7).long(), "answer": torch.randint(99, (N, 7))}, "answer"),
            ({"x": np.random.default_rng(0).random((N, 3))}, "batch['x']"),
        ],
    )
    def test_what_tells_samples_apart_is_judged(self, batch, judged):
        pruner = pfb.BatchPruner(0.5)
        pruner(batch)
        assert judged in pruner.judged_by

    def test_by(self):
        pruner, given = pfb.BatchPruner(0.5, rule=lambda features: -features[:, 0]), torch.arange(N).float()[:, None]
        _, y = pruner(images(), rows(), by=given)
        assert y.tolist() == [0, 1, 2, 3, 4, 5]
        assert pruner({"x": images(), "v": given}, by="v")["v"].tolist() == [[i] for i in range(6)]
        assert pruner(images(), given, by=lambda batch: -batch[1])[1].tolist() == [[i] for i in range(6, 12)]
        with pytest.raises(ValueError, match=r"must name a part of the batch \(got 'z'; there are 'x'\)"):
            pruner({"x": images()}, by="z")
        with pytest.raises(ValueError, match="must have the batch of 5 samples"):
            pruner(images(), rows(), by=torch.rand(5, 2))

    def test_nothing_to_judge_by(self):
        with pytest.raises(TypeError, match="cannot be judged.*Pass `by="):
            pfb.BatchPruner(0.5)({"texts": ["a"] * N, "label": rows()})

    def test_a_function_of_ones_own(self):
        pruner = pfb.BatchPruner(0.5, features=lambda x: x.mean((2, 3)), rule=pfb.RareFirst())
        assert isinstance(pruner.density, pfb.MovingCenters)
        assert len(pruner(images())) == 6
        with pytest.raises(ValueError, match=r"`features` must return a tensor \[N, D\]"):
            pfb.BatchPruner(0.5, features=lambda x: x.mean())(images())

    def test_a_function_of_ones_own_sees_samples_first(self):
        pruner = pfb.BatchPruner(0.5, features=lambda x: x.mean(1), dims={"x": 1}, rule=lambda f: -f[:, 0])
        x = torch.arange(N).float()[None, :, None].expand(7, N, 4)
        kept = pruner({"x": x, "y": rows()})
        assert (kept["x"].shape, kept["y"].tolist()) == ((7, 6, 4), [0, 1, 2, 3, 4, 5])
        assert pruner.judged_by == "batch['x']"

    def test_uniform_reads_nothing(self):
        pruner = pfb.BatchPruner(0.5, rule=pfb.Uniform())
        met = torch.zeros(N)
        for _ in range(400):
            met[pruner({"texts": ["a"] * N, "row": rows()})["row"]] += 1
        assert ((met - 200).abs() < 60).all(), "binomial(400, 0.5): six deviations of 10"
        assert not pruner.density.ready

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_broken_samples_are_kept(self, bad):
        pruner = pfb.BatchPruner(0.5)
        for i in range(6):
            x = images(seed=i)
            x[i, 0, 0, 0] = bad
            pruner(x)
            assert i in pruner.selection.indices

    def test_views_go_on_together(self):
        x = torch.cat([images(6), images(6) + 0.01])
        pruner = pfb.BatchPruner(0.5, views=2)
        pruner(x)
        kept = pruner.selection.indices
        assert kept[:3].tolist() == (kept[3:] - 6).tolist()
        assert int(pruner.density.state_dict()["counts"][1]) == 6

    def test_the_shallow_part_of_a_model(self):
        """The paper's rule before the model, against the literal density in float64."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        density = pfb.MovingCenters(8, 0.1)
        pruner = pfb.BatchPruner(0.4, features=pfb.Shallow(model, "1"), rule=pfb.RareFirst(0.0), density=density)
        literal = reference.Estimator(8, 0.1)
        for step in range(6):
            x = torch.rand(20, 3, 8, 8)
            pruner(x)
            features, kept = model[:2](x).mean((2, 3)).detach(), pruner.selection.indices
            if step > 0:
                rarest = literal.log_density(features).argsort()[:12].sort().values
                assert kept.tolist() == rarest.tolist()
            literal.step(features[kept])
        assert model.training


class TestRandomNumbersAndState:
    def test_training_draws_what_it_would_draw_without(self):
        torch.manual_seed(0)
        expected = torch.rand(5)
        torch.manual_seed(0)
        pruner = pfb.BatchPruner(0.5)
        for seed in range(3):
            pruner(images(seed=seed))
        assert torch.equal(torch.rand(5), expected)

    def test_seeds_differ_and_repeat(self):
        def choices(seed):
            pruner = pfb.BatchPruner(0.5, seed=seed)
            return [pruner(images(seed=i)) is None or pruner.selection.indices.tolist() for i in range(4)]

        assert choices(0) == choices(0) != choices(1)

    @given(st.integers(0, 9))
    def test_a_resumed_run_goes_on_bit_for_bit(self, stop):
        straight, first = pfb.BatchPruner(0.5, density=pfb.NeighbourMemory(64)), None
        chosen = []
        for i in range(12):
            if i == stop:
                first = copy.deepcopy(straight.state_dict())
            straight(images(seed=i), rows())
            chosen.append(straight.selection.indices.tolist())
        buffer = torch.serialization.io.BytesIO()
        torch.save(first, buffer)
        buffer.seek(0)
        again = pfb.BatchPruner(0.5, density=pfb.NeighbourMemory(64))
        again.load_state_dict(torch.load(buffer, weights_only=True))
        for i in range(stop, 12):
            again(images(seed=i), rows())
            assert again.selection.indices.tolist() == chosen[i]
        assert again.stats == straight.stats

    def test_copies_and_pickles_go_on_by_themselves(self):
        pruner = pfb.BatchPruner(0.5)
        pruner(images())
        twins = [copy.deepcopy(pruner), pickle.loads(pickle.dumps(pruner))]
        pruner(images(seed=1))
        for twin in twins:
            assert twin.steps == 1
            twin(images(seed=1))
            assert torch.equal(twin.selection.indices, pruner.selection.indices)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"version": 9}, "version 9"),
            ({"features": "shallow"}, "features='shallow', this one has features='sketch'"),
            ({"step": -1}, "`step` must be a whole number"),
            ({"seed": "x"}, "`seed` must be a whole number"),
            ({"lists": 3}, "`lists`"),
            ({"judged": 3}, "`judged`"),
            ({"counts": {"by_class": torch.zeros(3)}}, "`counts`"),
            ({"density": {}}, "lacks"),
        ],
    )
    def test_a_foreign_state_is_refused_and_changes_nothing(self, change, message):
        pruner = pfb.BatchPruner(0.5)
        pruner(images(), rows())
        before = copy.deepcopy(pruner.state_dict())
        with pytest.raises(ValueError, match=message):
            pruner.load_state_dict({**before, **change})
        assert str(pruner.state_dict()) == str(before)

    def test_no_state_at_all(self):
        for state in (None, 3, {}, {"step": 1}):
            with pytest.raises(ValueError, match="not a state of pfb.BatchPruner"):
                pfb.BatchPruner(0.5).load_state_dict(state)


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"prune": 1.0}, ValueError, r"\[0, 1\)"),
            ({"prune": "half"}, ValueError, "got 'half'"),
            ({"rule": pfb.Uniform}, TypeError, r"Did you mean `pfb.Uniform\(\)`"),
            ({"features": pfb.Sketch}, TypeError, r"`features` must be pfb.Sketch\(\)"),
            ({"features": "sketch"}, TypeError, "got 'sketch'"),
            ({"density": pfb.NeighbourMemory}, TypeError, r"write `\(\)` after it"),
            ({"density": 3}, TypeError, "got 3, which has no accumulate"),
            ({"views": 0}, ValueError, "at least 1"),
            ({"seed": 0.5}, TypeError, "`seed` must be a whole number"),
            ({"total_steps": 0}, ValueError, "at least 1"),
            ({"dims": {"x": -1}}, TypeError, "`dims` must map names to dimensions"),
            ({"shared": 0.5}, TypeError, "`shared` must be names"),
            ({"on_left_out": 3}, TypeError, "`on_left_out` must be a function"),
        ],
    )
    def test_errors_name_rule_value_and_way_out(self, arguments, error, message):
        with pytest.raises(error, match=message):
            pfb.BatchPruner(**arguments)

    def test_a_window_needs_its_length(self):
        pruner = pfb.BatchPruner(pfb.window(0.5, stop=0.5))
        with pytest.raises(RuntimeError, match="`total_steps` is needed"):
            pruner(images())
        pruner.total_steps = 4
        assert [len(pruner(images(seed=i))) for i in range(4)] == [6, 6, 12, 12]
        with pytest.warns(UserWarning, match="more steps than total_steps=4"):
            pruner(images())

    def test_without_a_batch(self):
        with pytest.raises(TypeError, match="is called with a batch"):
            pfb.BatchPruner(0.5)()

    def test_removed_names_say_what_replaces_them(self):
        for name, instead in (("Recompute", "Shallow"), ("DensityEstimator", "MovingCenters"), ("Originals", "by=")):
            with pytest.raises(AttributeError, match=instead):
                getattr(pfb, name)


class TestWhatIsSaid:
    def called(self, pruner, batches):
        for batch in batches:
            pruner(*batch)

    def test_shares_by_class(self):
        pruner = pfb.BatchPruner(0.5, rule=lambda features: features[:, 0])
        for _ in range(3):
            pruner(torch.arange(8.0)[:, None], torch.tensor([0, 0, 0, 0, 1, 1, 7, -100]))
        assert pruner.stats["kept_by_class"] == {0: 0.0, 1: 1.0, 7: 1.0}

    def test_a_starved_class_is_warned_of_once(self):
        pruner = pfb.BatchPruner(0.5, rule=lambda features: features[:, 0])
        with pytest.warns(UserWarning, match="of class 0 only 0% of the samples are kept, of all 50%") as caught:
            self.called(pruner, [(torch.arange(8.0)[:, None], torch.tensor([0, 0, 1, 1, 1, 1, 1, 1]))] * 130)
        assert len(caught) == 1

    def test_what_was_left_out(self):
        left = []
        pruner = pfb.BatchPruner(0.5, on_left_out=lambda part: left.append(part["id"]))
        kept = pruner({"image": images(), "id": [f"{i}.jpg" for i in range(N)]})["id"]
        assert sorted(left[0] + kept) == sorted(f"{i}.jpg" for i in range(N))
        assert len(left[0]) == 6

    def test_batches_that_are_too_small(self):
        pruner = pfb.BatchPruner(0.5)
        with pytest.warns(UserWarning, match="10 batches in a row were too small"):
            self.called(pruner, [(images(2, i),) for i in range(12)])


def test_a_step_seed_and_rank_make_the_random_numbers(monkeypatch):
    asked = []
    real = batch_pruner.generator_of
    monkeypatch.setattr(batch_pruner, "generator_of", lambda *numbers: asked.append(numbers[1:]) or real(*numbers))
    pruner = pfb.BatchPruner(0.5, seed=5)
    pruner(images())
    pruner(images())
    assert asked == [(5, 0, 0, 0), (5, 0, 0, 1)]


class TestKindsThatWereSilentlyWrong:
    def test_where_inputs_repeat_the_target_is_not_judged(self):
        pruner = pfb.BatchPruner(0.5)
        x = torch.randn(10, 16)[torch.randint(10, (64,))]
        pruner(x, torch.randn(64, 1))
        assert pruner.judged_by == "batch[0]"

    def test_a_refused_batch_leaves_no_trace(self):
        pruner = pfb.BatchPruner(0.5)
        with pytest.raises(ValueError, match="must have the batch"):
            pruner({"ids": list("0123456789"), "x": torch.randn(8, 16), "z": torch.randn(7)})
        assert pruner.judged_by is None
        kept = pruner({"ids": list("01234567"), "x": torch.randn(8, 16), "z": torch.randn(8)})
        assert len(kept["ids"]) == len(kept["x"]) == 4

    def test_what_is_shared_is_not_judged(self):
        pruner = pfb.BatchPruner(0.5, shared="proto")
        assert len(pruner({"proto": torch.randn(10, 16), "x": torch.randn(10, 16)})["proto"]) == 10
        assert pruner.judged_by == "batch['x']"

    def test_lists_of_as_many_lists_as_samples_are_refused(self):
        words = [[f"{i}_{j}" for j in range(8)] for i in range(8)]
        with pytest.raises(TypeError, match="holds 8 lists of 8 values for 8 samples"):
            pfb.BatchPruner(0.5)({"x": torch.randn(8, 4), "words": words})

    def test_nested_names_are_known(self):
        pruner = pfb.BatchPruner(0.5, shared="anchors")
        kept = pruner({"x": images(), "meta": {"anchors": torch.zeros(5, 2)}})
        assert len(kept["meta"]["anchors"]) == 5

    def test_arrays_to_judge_by(self):
        assert len(pfb.BatchPruner(0.5)(images(), by=np.random.default_rng(0).random((N, 3)))) == 6

    def test_many_small_classes_are_not_called_starved(self):
        pruner = pfb.BatchPruner(0.9, rule=pfb.Uniform())
        for _ in range(70):
            pruner(torch.randn(100, 4), torch.arange(100).flip(0) * 3)
