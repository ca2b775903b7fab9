"""AdamW, cosine, mixed samples and an average of the weights, together."""

import pytest

from pfb.lab.train.loop import train
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output import checkpoint

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]

SMALL = {"epochs": 2, "train_samples": 256, "batch_size": 64, "cpu": True, "n_centers": 16}


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def test_a_run_with_every_preset_resumes_bit_identical(tmp_path, monkeypatch, method):
    settings = {"optimizer": "adamw", "lr_schedule": "cosine", "mix": "both", "ema": 0.9, "epochs": 3, "lr": 0.003}
    straight = train(config(tmp_path / "straight", method=method, **settings))
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
        train(config(tmp_path / "broken", method=method, **settings))
    monkeypatch.setattr(checkpoint, "save", original)
    resumed = train(config(tmp_path / "broken", method=method, **settings), resume=True)
    for name in ("test_loss", "ema_test_loss", "train_loss"):
        assert resumed[name] == straight[name]
