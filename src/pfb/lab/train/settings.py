"""The settings of a run in groups, as ``pfb train --help`` shows them; ``TrainConfig`` is all of
them in one.

This file needs no torch: help is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SKETCHED = ("sketch", "originals")
"""Features that need no pass of the model."""


@dataclass(frozen=True)
class DataSettings:
    """What is trained on."""

    data: str = "digits"
    """digits; digit-clips (some of them as clips of near-equal frames); cifar10, cifar100,
    imagefolder:PATH with train/ and test/ (or val/) inside; shapes (generated pictures, to be
    segmented); text (documentation of Python's standard library, to be continued byte by byte).
    """
    data_root: Path = Path("data")
    """Where cifar10 and cifar100 lie or are downloaded to."""
    image_size: int | None = None
    """Side of an image folder's images; by default that of its first image if at most 64, else 224.
    Up to 64 an image is resized to a square, above it is resized and cropped.
    """
    train_samples: int | None = None
    """Train on so many samples only, equally many of every class; of shapes, draw so many."""
    drop: str | None = None
    """Train without near-copies, one of each group and class is left: auto finds them, or a list
    says which: copies.csv of pfb advise, imagededup's duplicates (.json), fastdup's similarity.csv.
    """
    split: Literal["folders", "groups"] = "folders"
    """Where an image folder's test set comes from. folders: from test/ or val/. groups: there is
    none, and a fifth of all images is set aside, of near-copies all or none.
    """
    augment: bool = True
    """Small images: shift by up to an eighth of the side (reflected) and flip; digits are not
    flipped. Large ones: random resized crop and flip. Shapes and text are left as they are.
    """
    mix: Literal["none", "mixup", "cutmix", "both"] = "none"
    """Mix pairs of images and their labels: mixup (alpha 0.8), cutmix (alpha 1), or one of the two
    for each batch.
    """
    workers: int = 2
    """Loader processes for images too large to be kept in memory."""


@dataclass(frozen=True)
class ModelSettings:
    """What is trained, and in which numbers."""

    model: str = ""
    """A classifier of torchvision by its name there; timm:NAME; or cifar-resnet8, 14, 20, ... (6 n
    + 2 layers), the ResNets of He et al. for CIFAR. A ResNet of torchvision gets the CIFAR stem for
    images of at most 64 pixels: a 3x3 convolution of stride 1 and no max-pool. For shapes: a
    segmentation model of torchvision, or segformer (0.7 M parameters, narrower than SegFormer-B0).
    For text: gpt (GPT-2's architecture, 6 layers of width 96). By default cifar-resnet8, segformer
    or gpt, as the data asks.
    """
    pretrained: bool = False
    """Begin with the library's published weights (torchvision's best, timm's default), all but a
    last layer for other classes. Images of an image folder should be as large as the weights'.
    """
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision, as Accelerate names it."""
    compile: bool = False
    """Compile the model with torch.compile; the first steps take minutes, all others less time."""
    channels_last: bool = False
    """Keep images as [N, H, W, C] in memory, which many convolutions run faster on."""


@dataclass(frozen=True)
class PruningSettings:
    """Which samples stop, where, and when."""

    method: Literal[
        "inverse-density",
        "pfb",
        "tempered",
        "stratified",
        "uniform",
        "full",
        "release",
        "infobatch",
        "orderdp",
        "selective-backprop",
    ] = "inverse-density"
    """What decides which samples are stopped. inverse-density: samples are drawn, those seldom that
    are like one seen lately; pfb: the paper's importance; tempered and stratified: softer forms of
    the paper's. uniform: random samples are stopped, the baseline to beat. full: none is. release:
    as in the code that the paper's authors published. infobatch, orderdp, selective-backprop:
    published methods to compare with, which stop nothing at the cut.
    """
    prune: float = 0.4
    """Share of every batch that is stopped, in [0, 1)."""
    start: float = 0.05
    """Share of training before pruning starts."""
    stop: float = 0.875
    """Share of training after which all samples train again."""
    ramp: int = 0
    """Number of levels over which the share grows in the first half of the window."""
    skip: float = 0.0
    """Second level: share of the samples that an epoch does not even load while pruning is on,
    drawn anew for each.
    """
    cut: str | None = None
    """Layer after which samples are stopped; by default the first stage."""
    channel_dim: int | None = None
    """Dimension of the cut's output that holds the channels, where it cannot be told: 1 for [N, C,
    H, W], -1 for [N, T, C].
    """
    shallow: Literal["reuse", "recompute"] = "recompute"
    """recompute: the kept samples run from the input, after a pass without graph where they are
    judged by the cut's features. reuse: one shallow pass, as in the paper.
    """
    batchnorm: Literal["running", "batch"] = "running"
    """recompute: statistics that BatchNorms use in the scoring pass."""
    scoring_scale: float = 1.0
    """recompute: resolution of the scoring pass, as a part of the images'."""
    features: Literal["cut", "cut-spread", "momentum", "sketch", "originals"] | None = None
    """What samples are judged by. cut: averages of the cut's output (the paper). cut-spread: and
    standard deviations. momentum: both under a moving average of the shallow weights (recompute).
    sketch: fixed features of the input, without any scoring pass. originals: the same of what the
    input was before it was augmented or mixed, which hides copies. By default sketch for
    inverse-density, cut for all others.
    """
    memory: int | None = None
    """Number of samples whose features are remembered, in place of centers; at most a third of an
    epoch. By default 4,096 or a third of an epoch for inverse-density, none for all others.
    """
    n_centers: int = 64
    """Centers of the density estimate."""
    beta: float = 0.01
    """How far a center moves per step."""
    alpha: float = 0.01
    """Upper end of the random term, as a share of the batch's largest density."""
    gamma: float | None = None
    """inverse-density: how strongly copies are left out, by default 4. tempered: how strongly rare
    samples are favoured, by default 0.5; negative favours dense ones.
    """
    reweight: bool = False
    """inverse-density: multiply each loss by 1 / probability of being kept, so that training keeps
    the aim of full data instead of moving towards what is rare. Where data repeat themselves much
    the losses become uneven and training worse (docs/redundancy.md).
    """
    per_class: bool = False
    """Apply the importance within each class, so that all classes keep the same share."""


@dataclass(frozen=True)
class OptimisationSettings:
    """How the rest is learned from."""

    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 128
    """Samples per step and process."""
    accumulate: int = 1
    """Batches whose gradients are averaged for one step of the optimizer."""
    clip: float | None = None
    """Largest norm of all gradients together; longer ones are shortened to it. 1.0 is usual for
    transformers.
    """
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: momentum without Nesterov's step. adamw: no decay of norms and biases."""
    lr: float = 0.05
    """Peak learning rate."""
    lr_schedule: Literal["onecycle", "cosine", "constant"] = "onecycle"
    """onecycle: div 25, final div 1e4, 30 % warm-up. cosine: to 0 after 5 % linear warm-up."""
    momentum: float = 0.9
    """Momentum of SGD, beta1 of AdamW; with onecycle the middle of a cycle of 0.05 to either side.
    """
    weight_decay: float = 5e-4
    """Decay of all weights with sgd, of the matrices with adamw."""
    label_smoothing: float = 0.1
    """Share of the label that is spread over all classes, in training and test loss."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is evaluated beside them; 0.999 is usual."""
    seed: int = 0
    """Decides weights, order and augmentation."""


@dataclass(frozen=True)
class RunSettings:
    """Where the run lies, and what it says."""

    out: Path = Path("runs/run")
    """Folder of the run: configuration, log, checkpoint, summary."""
    overwrite: bool = False
    """Replace the run that is in --out already."""
    minutes: float | None = None
    """Stop after the last epoch that ends within so many minutes of this command (at least one);
    the run can be resumed.
    """
    log_every: int = 50
    """Steps between two lines of the step log."""
    eval_every: int = 1
    """Epochs between two evaluations on the test set; the last epoch is always evaluated."""
    track: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"
    """Where the metrics are drawn, besides metrics.jsonl: TensorBoard's files in --out; a run in
    project (experiment) pfb of Weights & Biases or MLflow, whose own environment variables say
    where that is; or nowhere.
    """
    cpu: bool = False
    """Stay on the CPU even if there is a GPU."""
