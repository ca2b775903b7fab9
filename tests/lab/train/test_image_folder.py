"""Training on images in class folders, and what is refused about them."""

import shutil

import pytest
from PIL import Image

from pfb.lab.errors import RunError
from pfb.lab.train.loop import train
from tests.lab.train.runs import config, image_folder

pytestmark = [
    pytest.mark.usefixtures("_fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        return image_folder(tmp_path / "images", train=24, test=8)

    def settings(self, run, folder, **changes):
        common = {"train_samples": None, "batch_size": 16, "epochs": 6, "lr": 0.1, "n_centers": 8}
        return config(run, data=f"imagefolder:{folder}", **{**common, **changes})

    def test_small_images(self, run, folder):
        summary = train(self.settings(run, folder))
        assert summary["classes"] == ["dark", "light"]
        assert summary["test_accuracy"] > 0.9

    @pytest.mark.filterwarnings("ignore")
    def test_large_images_go_through_the_loader(self, run, folder):
        summary = train(self.settings(run, folder, image_size=72, epochs=1, workers=0, prune=0.5, start=0.0, stop=1.0))
        assert summary["deep_samples"] < summary["samples"]

    @pytest.mark.filterwarnings("ignore")
    def test_large_images_are_judged_by_their_thumbnails(self, run, folder):
        changes = {"image_size": 72, "epochs": 1, "workers": 0, "prune": 0.5, "start": 0.0, "stop": 1.0}
        local = {"method": "copies", "augment": True}
        summary = train(self.settings(run, folder, **changes, **local))
        assert summary["deep_samples"] < summary["samples"]

    def test_a_cut_that_cannot_be_read_is_refused_before_training(self, run, folder):
        """96 channels of 96 x 96 pixels."""
        square = self.settings(run, folder, model="convnext_tiny", image_size=384, workers=0, start=0.5)
        with pytest.raises(
            RunError, match=r"cannot tell which dimension .*\(2, 96, 96, 96\).*Pass --channel-dim 1 for"
        ):
            train(square)
        assert not run.exists()

    def test_a_damaged_image_is_named_before_the_first_step(self, run, folder):
        (folder / "train" / "dark" / "3.png").write_bytes(b"not an image")
        truncated = folder / "test" / "light" / "2.png"
        truncated.write_bytes(truncated.read_bytes()[:60])
        with pytest.raises(RunError, match=r"1 of 48 images cannot be read.*\n.*dark/3.png"):
            train(self.settings(run, folder))
        (folder / "train" / "dark" / "3.png").unlink()
        with pytest.raises(RunError, match="light/2.png"):
            train(self.settings(run, folder))

    def test_an_empty_class(self, run, folder):
        for file in (folder / "train" / "dark").iterdir():
            file.unlink()
        with pytest.raises(RunError, match="dark holds no images"):
            train(self.settings(run, folder))

    def test_an_empty_folder(self, run, folder):
        shutil.rmtree(folder / "train")
        (folder / "train").mkdir()
        with pytest.raises(RunError, match="no class folders"):
            train(self.settings(run, folder))

    def test_a_test_class_that_training_lacks(self, run, folder):
        (folder / "test" / "green").mkdir()
        Image.new("RGB", (16, 16)).save(folder / "test" / "green" / "0.png")
        with pytest.raises(RunError, match="green"):
            train(self.settings(run, folder))
