"""Settings: what they may be, and how they are read back."""

import dataclasses
from pathlib import Path

import pytest
from tyro._docstrings import get_field_docstring

from pfb.lab.errors import RunError
from pfb.lab.train.options.config import TrainConfig, default_model, settings_in


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0, "data": "imagefolder:x"}, "--image-size must be at least 1 .got 0"),
        ({"workers": -1}, "--workers must be at least 0"),
        ({"seed": -1}, "--seed must be a whole number in"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\)"),
        ({"weight_decay": -1e-4}, "--weight-decay"),
        ({"label_smoothing": 1.5}, "--label-smoothing must be a share"),
        ({"lr": float("nan")}, "--lr must be positive and finite"),
        ({"train_samples": 0}, "--train-samples must be at least 1"),
        ({"n_centers": 1}, "--n-centers must be"),
        ({"method": "copis"}, "--method must be copies, paper.*got 'copis'.*Did you mean copies"),
        ({"memory": 1}, "--memory must be at least 2"),
        ({"fill": True, "method": "paper"}, "--fill gathers batches that are pruned before the model.*--method paper"),
        ({"fill": True, "accumulate": 2}, "--fill gathers .*got --accumulate 2"),
        ({"repeats": 3}, "--batch-size must be a multiple of --repeats 3 .got 128"),
        ({"image_size": 32}, "--image-size is for image folders .got --data digits.; leave it out"),
    ],
)
def test_a_value_out_of_range_is_refused_in_the_words_of_the_command_line(changes, message):
    with pytest.raises(RunError, match=message):
        TrainConfig(**changes)


@pytest.mark.parametrize(("data", "model"), [("digits", "cifar-resnet8"), ("shapes", "segformer"), ("text", "gpt")])
def test_the_default_model_is_one_for_the_data(data, model):
    config = TrainConfig(data=data)
    assert config.model == model == default_model(data)
    assert config.changed() == ([] if data == "digits" else ["data"])
    changed = TrainConfig(data=data, model="x", method="paper", start=0.1).changed()
    assert set(changed) - {"data"} == {"model", "method", "start"}


class TestFile:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("epoch = 3", "'epoch' is no setting. Did you mean 'epochs'"),
            ('lr_schedule = "cosin"', "lr_schedule must be .*'cosine'.*got 'cosin'"),
            ('epochs = "three"', "epochs must be int"),
            ("epochs = 1.5", "epochs must be int"),
            ("epochs = true", "epochs must be int"),
            ("out = 3", "out must be Path"),
            ("epochs = ", "cannot be read"),
        ],
    )
    def test_what_is_no_setting_is_refused(self, tmp_path, text, message):
        place = tmp_path / "run.toml"
        place.write_text(text)
        with pytest.raises(RunError, match=message):
            settings_in(place)

    def test_whole_numbers_none_and_json(self, tmp_path):
        place = tmp_path / "run.json"
        place.write_text('{"lr": 1, "ema": null, "out": "runs/x"}')
        assert settings_in(place) == {"lr": 1, "ema": None, "out": Path("runs/x")}
        place.write_text("[1]")
        with pytest.raises(RunError, match="names and values"):
            settings_in(place)

    def test_bytes_that_are_no_text(self, tmp_path):
        place = tmp_path / "run.json"
        place.write_bytes(b"\xff\xfe{")
        with pytest.raises(RunError, match="run.json cannot be read"):
            settings_in(place)


def test_a_runs_settings_are_read_back_whole_or_not_at_all():
    config = TrainConfig(data="text", prune=0.3, ema=0.9)
    assert TrainConfig.from_json(config.to_json()) == config
    for damaged in ("{}", "5", "{", config.to_json().replace('"epochs": 20', '"epochs": "20"')):
        with pytest.raises(RunError, match="config.json was not written by this version"):
            TrainConfig.from_json(damaged)


def test_every_setting_is_explained():
    for f in dataclasses.fields(TrainConfig):
        assert get_field_docstring(TrainConfig, f.name, ()), f.name
