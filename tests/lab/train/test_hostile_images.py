"""Image folders of a stranger: links, pipes, strips, bombs, and what only looks like an image."""

import io
import logging
import os
import zlib

import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torchvision.transforms import v2

from pfb.lab.errors import RunError
from pfb.lab.train.data import labels_of, load, pixels
from pfb.lab.train.options.config import TrainConfig
from tests.lab.train.runs import image_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "data", train=3, test=2)


def source_of(folder, **changes):
    return load(TrainConfig(data=f"imagefolder:{folder}", **changes))


def chunk(kind, content):
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def png(width, height, *chunks):
    """A PNG of so many pixels, all 0; small however many they are."""
    pack = zlib.compressobj(9)
    rows = b"".join([pack.compress(bytes(width + 1)) for _ in range(height)]) + pack.flush()
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestLinks:
    def test_no_folder_is_read_twice_and_no_walk_is_endless(self, folder, caplog):
        for name, target in (("a/self", "."), ("b/self", "."), ("a/up", ".."), ("b/all", "../../../..")):
            link = folder / "train" / "dark" / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target, target_is_directory=True)
        with caplog.at_level(logging.WARNING):
            assert labels_of(source_of(folder).train).tolist() == [0, 0, 0, 1, 1, 1]
        assert caplog.messages[0].startswith(f"{folder / 'train'}: 4 links back into it are not followed: ")

    def test_one_class_does_not_take_another_ones_images(self, folder):
        (folder / "train" / "dark" / "more").symlink_to(folder / "train" / "light")
        assert labels_of(source_of(folder).train).tolist() == [0, 0, 0, 1, 1, 1]
        (folder / "train" / "same").symlink_to(folder / "train" / "light")
        with pytest.raises(RunError, match=r"train/same holds no images .*a link to a folder that was read already"):
            source_of(folder)

    def test_a_link_to_elsewhere_is_followed_once(self, folder, tmp_path):
        (folder / "train" / "light").rename(tmp_path / "light")
        (folder / "train" / "light").symlink_to(tmp_path / "light")
        (tmp_path / "light" / "self").symlink_to(tmp_path / "light")
        assert labels_of(source_of(folder).train).tolist() == [0, 0, 0, 1, 1, 1]

    def test_a_link_to_nothing_is_damaged(self, folder):
        (folder / "train" / "dark" / "x.png").symlink_to("nowhere")
        with pytest.raises(RunError, match=r"1 of 7 images cannot be read:\n.*x.png cannot be read .*No such file"):
            source_of(folder)


def test_only_files_are_read(folder, caplog):
    os.mkfifo(folder / "train" / "dark" / "x.png")
    (folder / "train" / "dark" / "y.png").symlink_to("/dev/zero")
    with caplog.at_level(logging.WARNING):
        assert len(source_of(folder).train) == 6
    assert caplog.messages[0].endswith("2 files are skipped, no image has their ending: pipes and devices (2)")
    with pytest.raises(RunError, match="x.png cannot be read .*it is no regular file"):
        pixels.read(folder / "train" / "dark" / "x.png")


def test_a_folder_that_may_not_be_read_is_not_passed_over(folder, monkeypatch):
    scandir = os.scandir

    def forbidden(place):
        if str(place).endswith("light"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(PermissionError, match="light"):
        source_of(folder)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", "@eaDir", "__MACOSX"])
def test_what_systems_leave_behind_is_no_class(folder, name):
    for place in (folder / "train" / name, folder / "test" / name, folder / "train" / "dark" / name):
        place.mkdir()
        Image.new("RGB", (16, 16)).save(place / "0.png")
    source = source_of(folder)
    assert source.classes == ["dark", "light"]
    assert len(source.train) == 6


def test_names_with_codes_are_written_as_codes(folder, caplog):
    (folder / "train" / "dark" / "a.\x1b[2J").touch()
    (folder / "train" / "dark" / "b\x1b[2J\n.png").touch()
    with caplog.at_level(logging.WARNING), pytest.raises(RunError) as raised:
        source_of(folder)
    assert "\\x1b[2j (1)" in caplog.messages[0]
    assert "b\\x1b[2J\\n.png cannot be read" in str(raised.value)
    assert "\x1b" not in caplog.text + str(raised.value)


class TestSizes:
    @pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
    def test_of_a_strip_the_middle_is_taken(self, folder, size):
        """Enlarged as a whole it would take a gigabyte; the shorter ones show that nothing else
        comes out.
        """
        for file, sides in (("0.png", size), ("1.png", tuple(min(side * 2, 200) for side in size))):
            pixels = torch.randint(256, sides[::-1], dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / "test" / "dark" / file)
        test = source_of(folder, image_size=72).test
        assert test[0]["input"].shape == (3, 72, 72)
        usual = v2.Compose([v2.Resize(82), v2.CenterCrop(72), v2.PILToTensor()])
        whole = Image.open(folder / "test" / "dark" / "1.png").convert("RGB")
        assert torch.equal(test[1]["input"], usual(whole))

    def test_too_many_pixels_are_refused_with_their_number(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png(8000, 8000))
        with pytest.raises(RunError, match=r"a.png has 8,000 x 8,000 pixels, more than the 50,000,000 .*shrink or rem"):
            pixels.read(tmp_path / "a.png")

    def test_a_large_photograph_is_read_at_half_its_size(self, tmp_path):
        Image.new("L", (8000, 8000), 100).save(tmp_path / "a.jpg")
        assert pixels.read(tmp_path / "a.jpg").size == (4000, 4000)
        Image.new("L", (800, 900), 100).save(tmp_path / "b.jpg")
        assert pixels.read(tmp_path / "b.jpg").size == (800, 900)

    def test_a_bomb_may_be_the_first_image(self, folder):
        first = folder / "train" / "dark" / "0.png"
        first.write_bytes(png(1, 1).replace(*(x.to_bytes(4, "big") * 2 for x in (1, 30_000)), 1))
        with pytest.raises(RunError, match=r"1 of 6 images cannot be read:\n.*dark/0.png"):
            source_of(folder)

    def test_so_may_one_with_a_long_text(self, folder):
        text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))
        (folder / "train" / "dark" / "0.png").write_bytes(png(16, 16, text))
        with pytest.raises(RunError, match=r"1 of 6 images cannot be read:\n.*dark/0.png"):
            source_of(folder)


class TestKinds:
    def test_programs_and_what_cannot_be_decoded_are_no_images(self):
        assert not {".eps", ".ps", ".h5", ".grib", ".fits", ".mpg", ".wmf", ".bufr"} & pixels.endings()
        assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"} <= pixels.endings()

    def test_nor_are_they_under_another_name(self, tmp_path, monkeypatch):
        """Pillow goes by the content, and has Ghostscript run an EPS."""
        content = io.BytesIO()
        Image.new("RGB", (4, 4)).save(content, format="EPS")
        (tmp_path / "a.png").write_bytes(content.getvalue())
        monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: 1 / 0)
        with pytest.raises(RunError, match="a.png cannot be read .cannot identify image file"):
            pixels.read(tmp_path / "a.png")

    @pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, MemoryError])
    def test_whatever_a_decoder_raises_is_one_line(self, folder, monkeypatch, error):
        def fail(*_):
            raise error("of the codec\nand more")

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        with pytest.raises(RunError, match=r"0.png cannot be read \(.*of the codec") as raised:
            pixels.read(folder / "train" / "dark" / "0.png")
        assert "\n" not in str(raised.value)

    def test_an_error_in_a_loaders_process_is_one_line_too(self, folder):
        (folder / "train" / "dark" / "1.png").write_bytes(b"no image")
        try:
            pixels.read(folder / "train" / "dark" / "1.png")
        except RunError:
            handed_on = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(RunError, match=r"^\S*dark/1.png cannot be read \(.*\); repair or remove it$"):
            handed_on.reraise()


class TestLayouts:
    def test_classes_one_level_deeper(self, folder):
        (folder / "train").rename(folder / "day1")
        (folder / "train").mkdir()
        (folder / "day1").rename(folder / "train" / "day1")
        with pytest.raises(RunError, match=r"got 'day1' only.*one level deeper \(dark, light\)\? Move them up"):
            source_of(folder)

    def test_no_test_set(self, folder):
        (folder / "test").rename(folder / "elsewhere")
        with pytest.raises(
            RunError, match=r"test is missing\..* Move a tenth or so of each class there: \S+train/CLASS"
        ):
            source_of(folder)

    def test_nothing_but_classes(self, folder):
        with pytest.raises(RunError, match=r"train is missing\..* If dark, light are the classes, move most images of"):
            source_of(folder / "train")
