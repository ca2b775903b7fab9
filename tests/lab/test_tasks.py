"""What the trainer offers beside plain classification: other tasks, presets, averages,
configuration files, a dry run.
"""

import csv
import json
import math

import pytest
import torch
from torch.nn import functional as F

from pfb.lab import cli
from pfb.lab.baselines import Skip
from pfb.lab.errors import RunError
from pfb.lab.train import checkpoint, optim, task
from pfb.lab.train.augment import flip_and_crop, mix
from pfb.lab.train.config import TrainConfig
from pfb.lab.train.loop import dry_run, train

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


class TestTasks:
    @pytest.mark.parametrize(
        ("model", "shallow"),
        [
            ("segformer", "recompute"),
            ("lraspp_mobilenet_v3_large", "recompute"),
            ("lraspp_mobilenet_v3_large", "reuse"),
        ],
    )
    def test_segmentation(self, tmp_path, model, shallow):
        settings = {"data": "shapes", "model": model, "train_samples": 64, "batch_size": 16, "shallow": shallow}
        summary = train(config(tmp_path / "run", **settings))
        assert summary["task"] == "segmentation"
        assert 0 < summary["test_mean_iou"] < 1
        assert summary["trained_samples"] < summary["samples"]

    def test_a_segmentation_model_of_torchvision_with_an_auxiliary_head(self, tmp_path):
        dry_run(config(tmp_path / "run", data="shapes", model="deeplabv3_mobilenet_v3_large", batch_size=8))

    def test_language(self, tmp_path, shallow):
        settings = {"data": "text", "model": "gpt", "optimizer": "adamw", "lr": 3e-3, "label_smoothing": 0.0}
        settings |= {"epochs": 4, "eval_every": 4, "batch_size": 16}
        summary = train(config(tmp_path / "run", shallow=shallow, **settings))
        assert summary["test_perplexity"] == pytest.approx(math.exp(summary["test_loss"]))
        assert summary["test_perplexity"] < 80, "128 if nothing were learned"
        assert summary["trained_samples"] < summary["samples"]

    @pytest.mark.parametrize("changes", [{"per_class": True}, {"mix": "mixup"}, {"model": "resnet8"}])
    def test_what_a_task_does_not_know_is_refused(self, tmp_path, changes):
        with pytest.raises(RunError, match="--"):
            train(config(tmp_path / "run", **{"data": "shapes", "model": "segformer", **changes}))

    def test_losses_and_accuracies_are_one_per_sample(self):
        logits, target = torch.randn(3, 5, 4, 4), torch.randint(5, (3, 4, 4))
        each = task.losses(logits, target)
        assert each.shape == task.accuracies(logits, target).shape == (3,)
        torch.testing.assert_close(each.mean(), F.cross_entropy(logits, target))
        tokens = task.logits_of(torch.randn(3, 7, 5), torch.zeros(3, 7, dtype=torch.int64))
        assert tokens.shape == (3, 5, 7)

    def test_mean_iou_by_hand(self):
        logits = F.one_hot(torch.tensor([[0, 0, 1], [1, 1, 2]])).permute(0, 2, 1).float()[..., None]
        target = torch.tensor([[0, 1, 1], [1, 1, 2]])[..., None]
        counted = task.confusion(logits, target, 4)
        first = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        second = [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
        assert counted.tolist() == [first, second]
        counted = counted.sum(0)
        assert task.mean_iou(counted) == pytest.approx((1 / 2 + 3 / 4 + 1) / 3), (
            "the class that never occurs is left out"
        )


class TestPresets:
    @pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
    def test_mixed_images_and_labels(self, kind):
        torch.manual_seed(0)
        images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
        mixed, soft = mix(images, labels, kind, 4)
        assert mixed.shape == images.shape
        assert soft.shape == (8, 4)
        torch.testing.assert_close(soft.sum(1), torch.ones(8))
        assert mix(images, labels, "none", 4) == (images, labels)

    def test_flips_and_crops_are_drawn_for_each_sample(self):
        torch.manual_seed(0)
        image = torch.arange(64.0).view(1, 1, 8, 8).expand(64, -1, -1, -1)
        flipped = flip_and_crop(image, flip=True, crop=0)
        mirrored = (flipped == image.flip(3)).all((1, 2, 3))
        assert 16 < int(mirrored.sum()) < 48
        assert ((flipped == image).all((1, 2, 3)) | mirrored).all()
        assert len(flip_and_crop(image, flip=False, crop=2).unique(dim=0)) > 10

    def test_a_run_with_all_of_them_resumes_bit_identical(self, tmp_path, monkeypatch, shallow):
        settings = {"optimizer": "adamw", "lr_schedule": "cosine", "mix": "both", "ema": 0.9, "epochs": 3, "lr": 0.003}
        straight = train(config(tmp_path / "straight", shallow=shallow, **settings))
        assert straight["ema_test_accuracy"] != straight["test_accuracy"]
        original, calls = checkpoint.save, []

        def stop_after_the_second(*arguments):
            place = original(*arguments)
            calls.append(place)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return place

        monkeypatch.setattr(checkpoint, "save", stop_after_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(config(tmp_path / "broken", shallow=shallow, **settings))
        monkeypatch.setattr(checkpoint, "save", original)
        resumed = train(config(tmp_path / "broken", shallow=shallow, **settings), resume=True)
        for name in ("test_loss", "ema_test_loss", "train_loss"):
            assert resumed[name] == straight[name]

    @pytest.mark.parametrize("name", ["onecycle", "cosine", "constant"])
    def test_schedules_end_where_they_should(self, name):
        settings = TrainConfig(lr=0.1, lr_schedule=name)
        of = optim.optimizer(torch.nn.Linear(2, 2), settings)
        schedule = optim.schedule(of, settings, 100)
        rates = []
        for _ in range(99):
            of.step()
            schedule.step()
            rates.append(schedule.get_last_lr()[0])
        assert max(rates) == pytest.approx(0.1, rel=1e-2)
        assert rates[-1] < 1e-3 if name != "constant" else rates[-1] == 0.1

    def test_adamw_decays_matrices_only(self):
        groups = optim.optimizer(torch.nn.Linear(2, 2), TrainConfig(optimizer="adamw")).param_groups
        assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 5e-4), (1, 0.0)]


class TestConfigFile:
    @pytest.fixture
    def file(self, tmp_path):
        place = tmp_path / "run.toml"
        place.write_text(
            'epochs = 2\ntrain-samples = 256\nbatch-size = 64\ncpu = true\nn_centers = 16\nshallow = "recompute"\n'
        )
        return place

    def test_flags_win_over_the_file(self, tmp_path, file):
        cli.main(["train", "--config", str(file), "--epochs", "1", "--out", str(tmp_path / "run")])
        settings = json.loads((tmp_path / "run" / "config.json").read_text())
        assert settings["epochs"] == 1
        assert settings["shallow"] == "recompute"
        assert settings["train_samples"] == 256

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("epoch = 3", "'epoch' is no setting. Did you mean 'epochs'"),
            ('method = "pbf"', "method must be .*'pfb'.*got 'pbf'"),
            ('epochs = "three"', "epochs must be int"),
            ("epochs = 1.5", "epochs must be int"),
            ("epochs = true", "epochs must be int"),
            ("prune = 2.0", r"\[0, 1\)"),
            ("epochs = ", "cannot be read"),
        ],
    )
    def test_what_is_no_setting_is_refused(self, tmp_path, text, message):
        place = tmp_path / "run.toml"
        place.write_text(text)
        with pytest.raises(RunError, match=message):
            TrainConfig.from_file(place)

    def test_whole_numbers_none_and_json(self, tmp_path):
        place = tmp_path / "run.json"
        place.write_text('{"lr": 1, "ema": null, "out": "runs/x"}')
        assert TrainConfig.from_file(place).lr == 1
        place.write_text("[1]")
        with pytest.raises(RunError, match="names and values"):
            TrainConfig.from_file(place)

    def test_a_missing_file(self, capsys):
        with pytest.raises(SystemExit):
            cli.main(["train", "--config", "nowhere.toml"])
        assert "nowhere.toml cannot be read" in capsys.readouterr().err


class TestDryRun:
    def test_writes_nothing(self, tmp_path, capsys, shallow):
        dry_run(config(tmp_path / "run", shallow=shallow))
        assert not (tmp_path / "run").exists()
        assert "4 steps in each of 2 epochs" in " ".join(capsys.readouterr().out.split())

    def test_refuses_what_the_run_would(self, tmp_path):
        with pytest.raises(RunError, match="layer9"):
            dry_run(config(tmp_path / "run", cut="layer9"))
        train(config(tmp_path / "run", epochs=1))
        with pytest.raises(RunError, match="not empty"):
            dry_run(config(tmp_path / "run"))


class TestTwoLevels:
    def test_samples_are_left_out_before_others_are_stopped(self, tmp_path, shallow):
        settings = {"epochs": 8, "train_samples": 512, "batch_size": 64, "shallow": shallow, "prune": 0.5}
        summary = train(config(tmp_path / "run", skip=0.25, **settings))
        # Epochs 2 to 7 prune: the first one (0 of 8) begins before the window, the last one (7 of
        # 8) after it.
        assert summary["samples"] == 2 * 512 + 6 * 384
        assert summary["steps"] == 2 * 8 + 6 * 6
        # Of 52 steps those from 2.6 to 45.5 stop half of 64.
        assert summary["pruned_steps"] == 43
        assert summary["trained_samples"] == summary["samples"] - 43 * 32
        seconds = {name: part["median"] for name, part in summary["step_seconds"].items() if name != "pairs"}
        assert summary["full_train_seconds"] == pytest.approx(
            summary["train_seconds"] + 43 * (seconds["full"] - seconds["pruned"]) + 12 * seconds["full"]
        )
        with (tmp_path / "run" / "samples.csv").open() as file:
            seen = [int(row["seen"]) for row in csv.DictReader(file)]
        assert min(seen) < max(seen), "another part is left out in every epoch"

    def test_the_floor_is_a_persons(self):
        assert Skip(100, 0.29).loaded == 71, "not 72, as int(0.29 * 100) would have it"

    def test_methods_that_choose_what_is_loaded_refuse_it(self, tmp_path):
        with pytest.raises(RunError, match="leave out --skip"):
            train(config(tmp_path / "run", method="infobatch", skip=0.2))
        with pytest.raises(RunError, match="--skip must be"):
            config(tmp_path / "run", skip=1.0)


def test_what_happened_to_each_sample_is_exported(tmp_path):
    summary = train(config(tmp_path / "run"))
    with (tmp_path / "run" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(256))
    stopped = sum(int(row["seen"]) - int(row["kept"]) for row in rows)
    assert stopped == summary["samples"] - summary["trained_samples"] > 0
    assert {int(row["label"]) for row in rows} == set(range(10))
