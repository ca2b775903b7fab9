"""Data by name, and image folders down to the pixels."""

import logging
import shutil

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from pfb.lab.errors import RunError
from pfb.lab.train.data import labels_of, load, pixels
from pfb.lab.train.data.images import class_balanced, in_memory
from pfb.lab.train.data.source import InMemory
from pfb.lab.train.options.config import TrainConfig


@pytest.fixture
def folder(tmp_path):
    """Two classes of gray images of 16 pixels."""
    for part, n in (("train", 3), ("test", 2)):
        for value, name in ((60, "dark"), (200, "light")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (16, 16), (value, value, value)).save(place / f"{i}.png")
    return tmp_path


def source_of(folder, **changes):
    return load(TrainConfig(data=f"imagefolder:{folder}", **changes))


class TestNames:
    def test_a_near_name_is_suggested(self):
        with pytest.raises(RunError, match=r"--data must be digits.*got 'cifar11'.*Did you mean cifar10 or cifar100\?"):
            load(TrainConfig(data="cifar11"))

    def test_so_is_the_folder_that_is_there(self, folder):
        with pytest.raises(RunError, match=f"did you mean imagefolder:{folder}"):
            load(TrainConfig(data=str(folder)))

    @pytest.mark.parametrize(
        ("data", "task", "shape"),
        [
            ("digits", "classification", (1, 8, 8)),
            ("shapes", "segmentation", (3, 64, 64)),
            ("text", "language", (64,)),
        ],
    )
    def test_what_needs_no_files(self, data, task, shape):
        source = load(TrainConfig(data=data, train_samples=20))
        assert source.task == task
        assert len(source.train) == len(labels_of(source.train)) == 20
        batch = source.train[3]
        assert batch["input"].shape == (1, *shape)
        assert batch["index"].tolist() == [3]

    def test_cifar_that_is_not_there_and_cannot_be_had(self, tmp_path, monkeypatch):
        import torchvision

        def offline(_):
            raise OSError("no route")

        monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
        with pytest.raises(RunError, match=r"no route.*Put its archive cifar-10-python.tar.gz there, or use --data"):
            load(TrainConfig(data="cifar10", data_root=tmp_path))


class TestInMemory:
    def test_pixels_are_normalised_over_all_classes_of_a_sorted_set(self):
        """An image folder comes sorted: the first 10,000 images of it may be one class."""
        images = torch.cat([torch.zeros(12_000, 1, 2, 2), torch.full((12_000, 1, 2, 2), 200.0)]).to(torch.uint8)
        data = InMemory(images, torch.arange(24_000) // 12_000)
        source = in_memory(data, data, ["a", "b"], augment=False)
        normalised = source.prepare_test(images)
        assert normalised.mean().abs() < 1e-3
        assert normalised.std() == pytest.approx(1, abs=1e-3)

    def test_a_subset_is_balanced_and_keeps_the_order(self):
        labels = torch.tensor([0] * 90 + [1] * 10)
        chosen = class_balanced(labels, 20, 2)
        assert labels[chosen].tolist() == [0] * 10 + [1] * 10
        assert chosen.tolist() == sorted(chosen.tolist())
        with pytest.raises(RunError, match="at most the data set's size 100"):
            class_balanced(labels, 101, 2)


class TestFolder:
    def test_images_and_labels(self, folder):
        source = source_of(folder)
        assert source.classes == ["dark", "light"]
        assert labels_of(source.train).tolist() == [0, 0, 0, 1, 1, 1]
        assert source.train[4]["input"].unique().tolist() == [200]
        assert source.image_size == 16

    def test_large_images_are_read_when_they_are_needed(self, folder):
        source = source_of(folder, image_size=72)
        assert source.train[4]["input"].shape == (3, 72, 72)
        assert labels_of(source.train).tolist() == [0, 0, 0, 1, 1, 1]

    @pytest.mark.parametrize("side", [16, 72])
    def test_originals_are_the_same_in_every_epoch_whatever_augmentation_makes_of_them(self, folder, side):
        gradient = np.linspace(0, 255, 90, dtype=np.uint8)[:, None].repeat(120, 1)
        for file in (folder / "train").rglob("*.png"):
            Image.fromarray(gradient if side > 16 else gradient[:16, :16]).save(file)
        source = source_of(folder, image_size=side, method="copies", augment=True)
        collate = source.collate or torch.utils.data.default_collate
        first, second = (collate([source.train[i] for i in range(3)]) for _ in range(2))
        if source.collate is not None:
            first, second = (source.train.__getitems__([0, 1, 2]) for _ in range(2))
        assert not torch.equal(source.prepare_train(first["input"]), source.prepare_train(second["input"]))
        assert torch.equal(source.original(first), source.original(second))
        assert source.original(first).shape == (3, 3, 32 if side > 16 else 16, 32 if side > 16 else 16)
        assert "original" not in source_of(folder, image_size=side, method="paper", augment=True).train[0]

    @pytest.mark.parametrize("ending", ["gif", "jp2", "tga"])
    def test_whatever_pillow_opens_is_an_image(self, folder, ending):
        Image.new("L", (16, 16), 77).save(folder / "train" / "dark" / f"9.{ending}")
        assert labels_of(source_of(folder).train).tolist() == [0, 0, 0, 0, 1, 1, 1]

    def test_other_files_are_told_and_hidden_ones_left_alone(self, folder, caplog):
        for name in ("notes.txt", "a.npy", "b.npy", ".DS_Store", "._0.png"):
            (folder / "train" / "dark" / name).write_text("x")
        with caplog.at_level(logging.WARNING):
            source_of(folder)
        (said,) = caplog.messages
        assert said.endswith("train: 3 files are skipped, no image has their ending: .npy (2), .txt (1)")

    @pytest.mark.parametrize("image_size", [None, 72])
    def test_a_photograph_is_turned_upright(self, folder, image_size):
        """As a camera stores one held upright: lying, with orientation 6."""
        upright = np.zeros((80, 80, 3), np.uint8)
        upright[:40] = 255
        exif = Image.Exif()
        exif[0x0112] = 6
        for file in (folder / "test").rglob("*.png"):
            file.unlink()
            Image.fromarray(np.rot90(upright)).save(file.with_suffix(".jpg"), exif=exif, quality=95)
        source = source_of(folder, image_size=image_size)
        image = source.test[0]["input"].reshape(3, source.image_size, source.image_size).float()
        half = source.image_size // 2
        assert image[:, : half - 2].mean() > 240
        assert image[:, half + 2 :].mean() < 15

    def test_one_class_is_none(self, folder):
        for part in ("train", "test"):
            shutil.rmtree(folder / part / "light")
        with pytest.raises(RunError, match="at least two classes .got 'dark' only"):
            source_of(folder)

    def test_damaged_images_are_listed_the_first_one_too(self, folder):
        for name in ("0.png", "2.png"):
            (folder / "train" / "dark" / name).write_bytes(b"no image")
        with pytest.raises(RunError, match=r"2 of 6 images cannot be read:\n.*dark/0.png.*\n.*dark/2.png"):
            source_of(folder)

    def test_a_damaged_large_image_is_named_when_it_is_read(self, folder):
        file = folder / "train" / "dark" / "1.png"
        file.write_bytes(file.read_bytes()[:50])
        with pytest.raises(RunError, match=r"dark/1.png cannot be read \(.*\); repair or remove it"):
            source_of(folder, image_size=72).train[1]

    def test_a_class_without_images(self, folder):
        for file in (folder / "test" / "light").iterdir():
            file.rename(file.with_suffix(".txt"))
        with pytest.raises(RunError, match="test/light holds no images"):
            source_of(folder)

    def test_the_test_set_may_lack_a_class_but_not_add_one(self, folder):
        shutil.rmtree(folder / "test" / "dark")
        assert labels_of(source_of(folder).test).tolist() == [1, 1]
        (folder / "test" / "green").mkdir()
        with pytest.raises(RunError, match="classes that .*train does not: green"):
            source_of(folder)


class TestPixels:
    @pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
    def test_gray_values_of_16_bits_survive(self, tmp_path, ending):
        values = np.array([[0, 255, 256, 4096], [30_000, 40_000, 65_000, 65_535]], np.uint16)
        file = tmp_path / f"deep.{ending}"
        if ending == "pgm":
            file.write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values).save(file)
        image = pixels.read(file)
        assert image.mode == "RGB"
        assert np.array(image)[..., 0].tolist() == (values // 256).tolist()

    @pytest.mark.parametrize("kind", [np.int32, np.float32])
    def test_values_of_32_bits_are_refused(self, tmp_path, kind):
        Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "deep.tif")
        with pytest.raises(RunError, match="deep.tif has values of 32 bits .*convert it to 8 or 16 bits"):
            pixels.read(tmp_path / "deep.tif")

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
    def test_every_usual_mode_ends_in_rgb(self, tmp_path, mode):
        kind = "tif" if mode in ("CMYK", "YCbCr") else "png"
        if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
            pytest.skip("Pillow before 13 cannot read the TIFF of this mode that it writes")
        Image.new("RGB", (4, 4), (200, 200, 200)).convert(mode).save(tmp_path / f"a.{kind}")
        image = pixels.read(tmp_path / f"a.{kind}")
        assert image.mode == "RGB"
        assert np.array(image).mean() > 150
