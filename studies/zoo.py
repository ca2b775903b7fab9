"""Does it fit my model? Two training steps of many architectures, pruned inside the model and by
its features before it, and a table of what came out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pfb
from pfb.blocking.hooks import is_wired
from pfb.lab import files
from pfb.lab.bench import output

SAMPLES = 6  # not 4: Swin returns four numbers beside its output, which a batch of 4 would make ambiguous
CLASSES = 10

TORCHVISION = {
    # name: arguments and image size where they are not the common ones
    "alexnet": {"size": 96},
    "vgg11_bn": {},
    "resnet18": {},
    "resnext50_32x4d": {},
    "squeezenet1_1": {"size": 96},
    "densenet121": {},
    "shufflenet_v2_x0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mnasnet0_5": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "convnext_tiny": {},
    "vit_b_32": {"image_size": 64},
    "swin_t": {},
    "swin_v2_t": {},
}
TIMM = {
    "resnet10t": {},
    "resnetv2_50": {},
    "res2net50_26w_4s": {},
    "cspresnet50": {},
    "efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "ghostnet_050": {},
    "rexnet_100": {},
    "regnety_002": {},
    "repvgg_a0": {},
    "nfnet_l0": {},
    "dla34": {},
    "hrnet_w18_small": {},
    "starnet_s1": {},
    "convnext_atto": {},
    "convnextv2_atto": {},
    "mambaout_femto": {},
    "poolformer_s12": {},
    "fastvit_t8": {},
    "efficientformer_l1": {"size": 224},
    "edgenext_xx_small": {},
    "mobilevit_xxs": {},
    "pvt_v2_b0": {},
    "twins_svt_small": {"size": 224},
    "davit_tiny": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_patch16_224": {"img_size": 64},
    "cait_xxs24_224": {"img_size": 64},
    "xcit_nano_12_p16_224": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64},
    "focalnet_tiny_srf": {},
    "hiera_tiny_224": {"size": 224},
    "mixer_s32_224": {"img_size": 64},
}
_TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
_IMAGE, _SEQUENCE = "ForImageClassification", "ForSequenceClassification"
TRANSFORMERS: dict[str, dict[str, Any]] = {
    # kind of model, and the configuration's values
    "vit": {"kind": _IMAGE, "config": {**_TINY, "image_size": 32, "patch_size": 8}},
    "swin": {
        "kind": _IMAGE,
        "config": {"image_size": 32, "patch_size": 2, "embed_dim": 12, "depths": [1, 1]}
        | {"num_heads": [2, 2], "window_size": 4},
    },
    "convnext": {"kind": _IMAGE, "config": {"depths": [1, 1, 1, 1], "hidden_sizes": [12, 16, 24, 32]}},
    "resnet": {
        "kind": _IMAGE,
        "config": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 24, 32, 40], "embedding_size": 16},
    },
    "bert": {"kind": _SEQUENCE, "config": {**_TINY, "vocab_size": 50}},
    "distilbert": {
        "kind": _SEQUENCE,
        "config": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "vocab_size": 50},
    },
    "gpt2": {"kind": "LMHeadModel", "config": {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 50}},
    "llama": {"kind": "ForCausalLM", "config": {**_TINY, "vocab_size": 50}},
    "wav2vec2": {
        "kind": _SEQUENCE,
        "config": {**_TINY, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8]}
        # Layer drop may leave the cut out, in which case nothing is pruned.
        | {"num_conv_pos_embeddings": 16, "layerdrop": 0.0},
    },
    "whisper": {
        "kind": "ForAudioClassification",
        "config": {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 48}
        | {"num_mel_bins": 8, "max_source_positions": 20},
    },
}


class Misfit(Exception):
    """What a model does with a blocker attached is not what it should."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Misfit(otherwise)


@dataclass(frozen=True)
class Member:
    """One architecture: how to make it, and a training step's loss given the inputs of N
    samples.
    """

    library: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]

    @property
    def id(self) -> str:
        return f"{self.library}:{self.name}"


def members() -> list[Member]:
    """All architectures of the table."""
    return [
        *(_vision("torchvision", name, dict(arguments)) for name, arguments in TORCHVISION.items()),
        *(_vision("timm", name, dict(arguments)) for name, arguments in TIMM.items()),
        *(_transformer(name, **settings) for name, settings in TRANSFORMERS.items()),
    ]


WAYS = ("attach", "before")
"""``pfb.attach(model)``; and ``pfb.BatchPruner`` by ``pfb.Shallow(model)``, before the model."""
TRIED = """\
With half of the samples pruned each model took two training steps, pruned inside the model
(`pfb.attach`) and before it by its own features (`pfb.BatchPruner(features=pfb.Shallow(model),
rule=pfb.RareFirst())`), with a finite loss and gradients, and was itself again afterwards: that is
what yes means. No accuracy was measured. By a sketch of the input, the default of
`pfb.prune_batches`, the model plays no part.
"""


def check(model: nn.Module, batch: dict[str, Tensor], way: str) -> str:
    """Prune by the first stage, train two steps; returns the cut that was found.

    Args:
        model: new.
        batch: of SAMPLES samples.
        way: one of WAYS.

    Raises:
        Misfit: outputs or gradients of another size or not finite, or a model that is not restored.
    """
    model.train()
    cut = (_attached if way == "attach" else _before)(model, batch)
    _require(not is_wired(model), "hooks are left behind")
    model.eval()
    with torch.no_grad():
        outputs = _forward(model, batch, labels=False)[1]
    _require(outputs == SAMPLES, f"{outputs} of {SAMPLES} samples came out after detaching")
    return cut


def _attached(model: nn.Module, batch: dict[str, Tensor]) -> str:
    blocker = pfb.attach(model, prune=0.5)
    for _ in range(2):
        logits, n = _forward(model, batch, labels=False)
        labels = blocker.select(batch["labels"])
        _step(model, nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()), n)
        blocker.step()
    blocker.detach()
    return blocker.cut


def _before(model: nn.Module, batch: dict[str, Tensor]) -> str:
    features = pfb.Shallow(model)
    pruner = pfb.BatchPruner(0.5, features=features, rule=pfb.RareFirst())
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for _ in range(2):
        kept = pruner(batch, by=batch.get("image", inputs))
        if "image" in batch:
            logits, n = _forward(model, kept, labels=False)
            loss = nn.functional.cross_entropy(logits, kept["labels"])
        else:
            loss, n = _forward(model, kept, labels=True)  # labels go through the model
        _step(model, loss, n)
    return features.cut


def _step(model: nn.Module, loss: Tensor, outputs: int) -> None:
    """Look at the loss and its gradients, which no optimizer needs to see."""
    model.zero_grad()
    _require(bool(loss.isfinite()), f"loss is {loss}")
    _require(outputs == SAMPLES // 2, f"{outputs} of {SAMPLES} samples came out")
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    _require(bool(gradients), "no gradients")
    _require(all(bool(g.isfinite().all()) for g in gradients), "a gradient is not finite")


@dataclass(frozen=True)
class ZooConfig:
    """Prune many architectures in both ways, train two steps of each, and write the table."""

    out: Path = Path("docs/zoo.md")
    """The table."""


def run(config: ZooConfig) -> Path:
    """Check every member in both ways and write the table."""
    from rich.progress import track

    rows = []
    failures = 0
    for member in track(members(), "models"):
        cells: dict[str, str] = {}
        cut = ""
        for way in WAYS:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.manual_seed(0)
                    cut = check(member.make(), member.inputs(), way)
                cells[way] = "yes"
            except Exception as error:
                cells[way] = f"no: {(str(error) or type(error).__name__).splitlines()[0][:90]}"
                failures += 1
        rows.append([member.library, member.name, f"`{cut}`", *cells.values()])
    table = output.table(["library", "model", "cut found", *(f"`{way}`" for way in WAYS)], rows)
    files.write_text(config.out, f"{TRIED}\n{table}")
    print(f"{len(rows)} models, {failures} failures")
    return config.out


def _vision(library: str, name: str, arguments: dict[str, Any]) -> Member:
    size = arguments.pop("size", 64)

    def make() -> nn.Module:
        if library == "timm":
            import timm

            model: nn.Module = timm.create_model(name, num_classes=CLASSES, **arguments)
        else:
            import torchvision

            model = torchvision.models.get_model(name, num_classes=CLASSES, **arguments)
        return model

    def inputs() -> dict[str, Tensor]:
        return {"image": torch.randn(SAMPLES, 3, size, size), "labels": torch.arange(SAMPLES)}

    return Member(library, name, make, inputs)


def _transformer(name: str, kind: str, config: dict[str, Any]) -> Member:
    def make() -> nn.Module:
        import transformers

        settings = transformers.AutoConfig.for_model(name, num_labels=CLASSES, **copy.deepcopy(config))
        settings.pad_token_id = 0
        family = {"vit": "ViT", "swin": "Swin", "convnext": "ConvNext", "resnet": "ResNet", "bert": "Bert"}
        family |= {
            "distilbert": "DistilBert",
            "gpt2": "GPT2",
            "llama": "Llama",
            "wav2vec2": "Wav2Vec2",
            "whisper": "Whisper",
        }
        model: nn.Module = getattr(transformers, family[name] + kind)(settings)
        return model.train()

    def inputs() -> dict[str, Tensor]:
        labels = torch.arange(SAMPLES)
        if kind == "ForImageClassification":
            return {"pixel_values": torch.randn(SAMPLES, 3, 32, 32), "labels": labels}
        if name == "wav2vec2":
            return {"input_values": torch.randn(SAMPLES, 800), "labels": labels}
        if name == "whisper":
            return {"input_features": torch.randn(SAMPLES, 8, 40), "labels": labels}
        tokens = torch.randint(1, 50, (SAMPLES, 9))
        return {"input_ids": tokens, "labels": tokens if kind in ("LMHeadModel", "ForCausalLM") else labels}

    return Member("transformers", name, make, inputs)


def _forward(model: nn.Module, batch: dict[str, Tensor], labels: bool) -> tuple[Tensor, int]:
    """The model's loss if it gets the labels, else its logits; and the number of samples that came
    out.
    """
    if "image" in batch:
        logits = model(batch["image"])
    else:
        out = model(**{k: v for k, v in batch.items() if labels or k != "labels"})
        if labels:
            return out.loss, len(out.logits)
        logits = out.logits
    return logits, len(logits)
