"""Published weights: loaded but for the last layer, and refused well. Nothing is downloaded."""

import re
import urllib.error

import pytest
import timm
import torch
import torchvision

from pfb.lab import files
from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from pfb.lab.train.nets import pretrained
from pfb.lab.train.nets.models import build
from pfb.lab.train.output.folder import RunFolder
from tests.lab.train.runs import config, image_folder, interrupt_evaluation

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


WEIGHTS = torchvision.models.squeezenet1_1().state_dict()
"""Of a model that somebody has trained."""


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Where the files of weights lie."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def hub(monkeypatch, cache):
    """What stands in for the download: the addresses that were asked."""
    asked = []

    def download(url, place, *_, **__):
        asked.append(url)
        torch.save(WEIGHTS, place)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(pretrained, "HASHED", re.compile("no such name"))
    return asked


class _Executed:
    def __reduce__(self):
        return print, ("a pickle of the weights was executed",)


class TestAFileInTheCache:
    """pfb itself asks to put one there."""

    def build(self):
        return build("squeezenet1_1", 7, 3, 224, published=True)

    def place(self, cache, content):
        """Under the digits that it has."""
        torch.save(content, cache / "x")
        digest = files.digest(cache / "x")
        (cache / "x").rename(cache / f"squeezenet-{digest[:8]}.pth")
        return f"https://example.org/squeezenet-{digest[:8]}.pth"

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ({"features.0.weight": _Executed()}, "no file of tensors and plain values"),
            ({"features.0.weight": "text"}, "something else than tensors by name"),
            (torch.zeros(3), "something else than tensors by name"),
            ({}, "something else than tensors by name"),
        ],
    )
    def test_no_code_of_it_is_run(self, cache, capsys, monkeypatch, content, said):
        url = self.place(cache, content)
        weights = torchvision.models.SqueezeNet1_1_Weights
        monkeypatch.setattr(type(weights.DEFAULT), "url", property(lambda _: url))
        with pytest.raises(RunError, match=said) as raised:
            self.build()
        assert "\n" not in str(raised.value)
        assert "executed" not in capsys.readouterr().out
        assert "weights_only" not in str(raised.value)

    def test_the_digits_in_its_name_are_compared(self, cache):
        url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
        torch.save(WEIGHTS, cache / url.rpartition("/")[2])
        with pytest.raises(RunError, match=r"has not the content of that name; remove it"):
            self.build()

    def test_a_good_one_is_loaded(self, cache, monkeypatch):
        url = self.place(cache, WEIGHTS)
        monkeypatch.setattr(type(torchvision.models.SqueezeNet1_1_Weights.DEFAULT), "url", property(lambda _: url))
        assert torch.equal(self.build().state_dict()["features.0.weight"], WEIGHTS["features.0.weight"])


@pytest.mark.parametrize("classes", [7, 1000])
def test_all_is_loaded_but_a_last_layer_for_other_classes(hub, classes):
    model = build("squeezenet1_1", classes, 3, 224, published=True).state_dict()
    other = {name for name, value in model.items() if not torch.equal(value, WEIGHTS[name])}
    assert other == (set() if classes == 1000 else {"classifier.1.weight", "classifier.1.bias"})
    assert len(hub) == 1
    assert "squeezenet1_1" in hub[0]


def test_a_run_begins_with_them_and_a_resumed_one_needs_no_download(tmp_path, hub, monkeypatch):
    root, run = image_folder(tmp_path / "data"), tmp_path / "run"
    settings = {"data": f"imagefolder:{root}", "model": "squeezenet1_1", "pretrained": True, "image_size": 65}
    interrupt_evaluation(monkeypatch, at=2)
    with pytest.raises(KeyboardInterrupt):
        train(config(run, **settings, train_samples=None, batch_size=4, workers=0, track="none", cut="features.3"))
    assert len(hub) == 1
    monkeypatch.setattr(pretrained, "from_torchvision", lambda *_: 1 / 0)
    monkeypatch.setattr(
        "pfb.lab.train.loop.Training.evaluate", lambda *_: {"train_accuracy": 0.0, "test_accuracy": 0.0}
    )
    train(RunFolder(run).config(), resume=True)


def test_what_does_not_come_is_told_with_its_place(monkeypatch, cache):
    def fail(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        RunError, match=r"^--pretrained: weights of resnet18 cannot be had .*no route.*checkpoints/resn"
    ):
        build("resnet18", 10, 3, 224, published=True)


class TestTimm:
    def test_its_own_loader_is_asked(self, monkeypatch):
        asked, create = [], timm.create_model

        def noting(name, pretrained, **sizes):
            asked.append((name, pretrained))
            return create(name, pretrained=False, **sizes)

        monkeypatch.setattr(timm, "create_model", noting)
        build("timm:test_vit", 7, 1, 32, published=True)
        assert asked == [("test_vit", True)]

    def test_other_means_are_told(self, monkeypatch, caplog):
        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **sizes: create(name, **sizes))
        with caplog.at_level("INFO", "pfb"):
            build("timm:test_vit", 7, 3, 32, published=True)
        assert "timm:test_vit was trained on images normalised by the mean (0.5, 0.5, 0.5)" in caplog.text

    def test_a_model_without_weights(self, monkeypatch):
        def none(name, **_):
            raise RuntimeError(f"No pretrained weights exist for {name}. Use `pretrained=False`")

        monkeypatch.setattr(timm, "create_model", none)
        with pytest.raises(RunError, match="weights of timm:test_vit cannot be had .No pretrained weights exist"):
            build("timm:test_vit", 7, 3, 32, published=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "cifar-resnet8"}, "is for models of torchvision and timm .got cifar-resnet8.; leave it out"),
        ({"model": "resnet18"}, r"3 channels and more than 64 pixels .got 1 and 8.; use an image folder"),
        ({"data": "text", "model": "gpt", "train_samples": 64}, "is for classifiers of images .got --model gpt"),
    ],
)
def test_where_there_are_none_it_is_refused(tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        train(config(tmp_path / "run", pretrained=True, **changes))
