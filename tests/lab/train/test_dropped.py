"""``--drop`` and ``--split groups``: near-copies that are left out, or kept out of the test."""

import json
import shutil

import pytest
import torch
from PIL import Image

from pfb.lab import cli
from pfb.lab.errors import RunError
from pfb.lab.train.data import labels_of, load
from pfb.lab.train.data.split import by_groups
from pfb.lab.train.options.config import TrainConfig
from tests.lab.scenes import picture, save_frame
from tests.lab.train.runs import config


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of 40 pictures and 10 frames of each of 4 scenes; one scene is in both."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)

    for number in range(4):
        scene = picture(generator)
        for frame in range(10):
            label = frame % 2 if number == 0 else number % 2
            save_frame(root / f"class{label}/scene{number}_{frame}.png", scene, generator)
    for number in range(80):
        save_frame(root / f"class{number % 2}/single{number}.png", picture(generator), generator)
    return root


@pytest.fixture
def folder(pictures, tmp_path):
    """The same as a training set, beside a test set."""
    shutil.copytree(pictures, tmp_path / "data/train")
    for number in range(2):
        (tmp_path / f"data/test/class{number}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (99, 99, 99)).save(tmp_path / f"data/test/class{number}/a.png")
    return tmp_path / "data"


def source_of(root, **changes):
    return load(TrainConfig(data=f"imagefolder:{root}", **changes))


def scenes(names):
    return sorted(name.split("/")[-1].split("_")[0] for name in names if "scene" in name)


class TestDrop:
    @pytest.mark.parametrize("side", [None, 72])
    def test_one_of_each_group_and_class_is_left(self, folder, side, capsys):
        source = source_of(folder, drop="auto", image_size=side)
        assert scenes(source.names) == ["scene0", "scene0", "scene1", "scene2", "scene3"]
        assert len(source.names) == len(source.train) == len(labels_of(source.train)) == 85
        for name, label in zip(source.names, labels_of(source.train).tolist(), strict=True):
            assert f"class{label}/" in name
        assert source.train[84]["index"] == 84
        said = capsys.readouterr().out
        assert "--drop auto: 85 of 120 training samples are left; 1 group of near-copies holds several classes" in said

    def test_a_list_of_advise_is_dropped(self, folder, tmp_path, capsys):
        place = tmp_path / "copies.csv"
        args = "--data", f"imagefolder:{folder}", "--cpu", "--batch-size", "8"
        cli.main(["advise", *args, "--out", str(tmp_path / "a.html"), "--export", str(place)])
        assert "120 samples have near-copies" in capsys.readouterr().out
        assert scenes(source_of(folder, drop=str(place)).names) == scenes(source_of(folder, drop="auto").names)
        (folder / "train/class0/single0.png").unlink()
        with pytest.raises(RunError, match=r"was made of 120 samples, and 119 are trained on: make the list anew"):
            source_of(folder, drop=str(place))

    @pytest.mark.parametrize("name", ["scene1_0.png", "class1/scene1_0.png", "/some/where/train/class1/scene1_0.png"])
    def test_files_are_known_by_the_end_of_their_path(self, folder, tmp_path, name):
        place, others = tmp_path / "duplicates.json", [[f"{name[:-5]}{i}.png", 0.9] for i in range(1, 10)]
        place.write_text(json.dumps({name: others}))
        source = source_of(folder, drop=str(place))
        assert len(source.names) == 111
        assert scenes(source.names).count("scene1") == 1
        assert "train/class1/scene1_0.png" in source.names

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"other.png": ["elsewhere.png"]}', r"names 2 of 2 samples that are not in the training set"),
            ('{"scene1_0.png": []}', r"no near-copies in .*duplicates.json of the 120 training samples"),
            ('{"scene0_0.png": ["scene0_1.png"]}', r"no near-copies"),  # of two classes
            ("[1]", "must be auto or a list of near-copies"),
        ],
    )
    def test_lists_that_do_not_fit_are_refused(self, folder, tmp_path, text, says):
        (tmp_path / "duplicates.json").write_text(text)
        with pytest.raises(RunError, match=says):
            source_of(folder, drop=str(tmp_path / "duplicates.json"))

    def test_what_there_is_not(self, tmp_path):
        with pytest.raises(RunError, match="must be auto or a list of near-copies"):
            load(TrainConfig(data="digits", drop=str(tmp_path / "none.csv")))
        with pytest.raises(RunError, match="leave out --train-samples"):
            load(TrainConfig(data="digits", drop="a.csv", train_samples=300))
        with pytest.raises(RunError, match="no near-copies among the 100 training samples; leave it out"):
            load(TrainConfig(data="digits", drop="auto", train_samples=100))

    def test_indices_count_data_without_files(self, tmp_path):
        (tmp_path / "copies.csv").write_text("index,file,group,kept,of\n0,,1,no,1600\n39,,1,yes,1600\n")
        whole, source = (load(TrainConfig(data="digit-clips", drop=d)) for d in (None, str(tmp_path / "copies.csv")))
        assert torch.equal(source.train.images, whole.train.images[1:])
        (tmp_path / "copies.csv").write_text("index,file,group,kept\n0,,1,no\n1600,,1,yes\n")
        with pytest.raises(RunError, match="names 1 of 2 samples that are not in the training set"):
            load(TrainConfig(data="digit-clips", drop=str(tmp_path / "copies.csv")))

    def test_tokens(self, monkeypatch):
        blocks = torch.randint(97, 122, (90, 64))
        blocks = torch.cat([blocks, blocks[:2].repeat(14, 1)])
        monkeypatch.setattr("pfb.lab.train.data.generated._standard_library_text", lambda: blocks.flatten())
        whole, source = (load(TrainConfig(data="text", drop=drop)) for drop in (None, "auto"))
        assert len(source.train) < len(whole.train)

    @pytest.mark.usefixtures("_fresh_accelerate")
    def test_a_run_trains_on_what_is_left(self, run, folder):
        from pfb.lab.train.loop import train

        settings = {"train_samples": None, "batch_size": 16, "epochs": 1, "drop": "auto"}
        summary = train(config(run, data=f"imagefolder:{folder}", **settings))
        assert summary["samples"] == 80
        assert (run / "samples.csv").read_text().count("scene") == 5


class TestSplit:
    def test_no_group_is_in_both(self, pictures):
        source = source_of(pictures, split="groups")
        assert len(source.train) + len(source.test) == 120
        train, test = set(source.names), {f.relative_to(pictures).as_posix() for f in pictures.rglob("*.png")}
        test -= train
        assert not set(scenes(train)) & set(scenes(test))
        assert len(test) == len(source.test)
        assert 18 <= len(test) <= 30
        assert len(set(labels_of(source.test).tolist())) == 2

    def test_the_training_set_of_a_folder_is_split(self, folder):
        shutil.rmtree(folder / "test")
        with pytest.raises(RunError, match="--split groups sets one aside"):
            source_of(folder)
        assert all(name.startswith("train/") for name in source_of(folder, split="groups").names)

    def test_a_test_set_that_is_there_is_not_replaced(self, folder):
        with pytest.raises(RunError, match="--split groups is for images without a test set"):
            source_of(folder, split="groups")

    def test_it_is_for_folders(self):
        with pytest.raises(RunError, match="--split groups is for image folders"):
            TrainConfig(data="digits", split="groups")

    def test_a_class_that_is_one_group_stays_in_training(self):
        train, test = by_groups([tuple(range(50))], torch.cat([torch.zeros(50), torch.ones(10)]).long())
        assert set(range(50)) <= set(train)
        assert len(test) == 2

    def test_a_class_that_lies_in_a_group_of_another_stays_in_training(self):
        labels = torch.cat([torch.zeros(30), torch.ones(1)]).long()
        for first in range(10):  # 30, of another class, may be drawn with any of these
            train, _ = by_groups([(first, 30)], labels)
            assert 30 in train

    def test_moved_frames_are_on_one_side(self, tmp_path):
        generator = torch.Generator().manual_seed(0)

        def shown(size):
            return torch.nn.functional.interpolate(picture(generator)[None], size=size, mode="bicubic")[0]

        for number in range(12):
            scene = shown(34)
            for frame in range(15):
                down, right = torch.randint(3, (2,), generator=generator).tolist()
                moved = scene[:, down : down + 32, right : right + 32]
                save_frame(tmp_path / f"class{number % 2}/scene{number}_{frame}.png", moved, generator)
        for number in range(100):
            save_frame(tmp_path / f"class{number % 2}/single{number}.png", shown(32), generator)
        source = source_of(tmp_path, split="groups")
        names = {f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*.png")}
        assert not set(scenes(source.names)) & set(scenes(names - set(source.names)))

    def test_nothing_to_test_on(self, tmp_path):
        for label in range(2):
            (tmp_path / f"c{label}").mkdir()
            for i in range(3):
                Image.new("RGB", (16, 16), (90 * label, 9, 9)).save(tmp_path / f"c{label}/{i}.png")
        with pytest.raises(RunError, match="none is left to test on"):
            source_of(tmp_path, split="groups")
