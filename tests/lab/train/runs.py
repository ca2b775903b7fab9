"""A small run, and what it leaves behind that must not depend on interruptions."""

import functools
import hashlib
import resource
from typing import Any

import torch
from PIL import Image

from pfb.lab.train import data, loop
from pfb.lab.train.options.config import TrainConfig
from pfb.lab.train.output import cost
from pfb.lab.train.output.folder import RunFolder
from pfb.utils.timing import interleaved_seconds

SMALL: dict[str, Any] = {"epochs": 2, "train_samples": 192, "batch_size": 32, "cpu": True, "n_centers": 16}
SMALL |= {"method": "paper", "start": 0.05, "stop": 0.875, "ramp": 0}  # with hooks, which can go wrong most
FLAGS = ("--epochs", "2", "--train-samples", "192", "--batch-size", "32", "--cpu", "--n-centers", "16")
FLAGS += ("--method", "paper", "--start", "0.05", "--stop", "0.875", "--ramp", "0")

TEST_SAMPLES = 90


def shorten(replace):
    """Leave out what takes half of a small run's time and no test looks at: more than one pair of
    steps to time, rounds before them, and three quarters of the digits to test on. ``replace`` is
    ``setattr``, or pytest's.
    """
    replace(cost, "PAIRS", 1)
    replace(cost, "interleaved_seconds", functools.partial(interleaved_seconds, warmup=0))
    replace(data, "SOURCES", {**data.SOURCES, "digits": functools.partial(_few_to_test, data.SOURCES["digits"])})


def _few_to_test(digits, config):
    source = digits(config)
    source.test.images, source.test.labels = (part[:TEST_SAMPLES] for part in (source.test.images, source.test.labels))
    return source


def config(run, **changes):
    return TrainConfig(**{**SMALL, "out": run, **changes})


def begun(run, *lines):
    """The folder of a run that has begun, with these lines in its log."""
    folder = RunFolder(run)
    folder.claim(overwrite=False)
    with folder.locked():
        folder.begin(config(run))
        for line in lines:
            folder.log(line)
    return folder


def weights(run):
    from safetensors.torch import load_file

    return load_file(RunFolder(run).checkpoints()[-1] / "model.safetensors")


def end_of(run):
    """All that two runs of the same settings have in common, bit by bit."""
    folder = RunFolder(run)
    times = {"train_seconds", "waiting_share"}
    epochs = [{name: value for name, value in line.items() if name not in times} for line in folder.epochs()]
    records = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in folder.records().items()}
    checkpoints = folder.checkpoints()
    model = hashlib.sha256((checkpoints[-1] / "model.safetensors").read_bytes()).hexdigest()
    exported = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("best.pt", "weights.pt")}
    samples = (run / "samples.csv").read_text()
    summary = {name: folder.summary()[name] for name in ("test_loss", "train_accuracy", "samples", "trained_samples")}
    return {
        "checkpoints": [p.name for p in checkpoints],
        "model": model,
        "exported": exported,
        "epochs": epochs,
        "records": records,
        "samples": samples,
        "summary": summary,
    }


def content(run):
    """Every file of a folder, and what is in it."""
    return {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def image_folder(root, side=16, train=6, test=4):
    """Noisy pictures of two classes, dark and light, ``train`` and ``test`` of each."""
    g = torch.Generator().manual_seed(0)
    for part, n in (("train", train), ("test", test)):
        for label, name in enumerate(("dark", "light")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = (torch.rand(side, side, 3, generator=g) * 100 + 120 * label).to(torch.uint8).numpy()
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def interrupt_evaluation(monkeypatch, at):
    """Ctrl-C at the evaluation of some epoch."""
    evaluate, calls = loop.Training.evaluate, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(loop.Training, "evaluate", interrupting)


class file_size_limit:  # noqa: N801 - reads as a verb
    """Makes the very write calls fail that a full disk makes fail."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
