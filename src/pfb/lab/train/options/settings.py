"""The settings of a run in groups, as ``pfb train --help`` shows them; ``TrainConfig`` is all of
them in one.

This file needs no torch: help is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
    policy: Literal["none", "ta_wide"] = "none"
    """Large images: TrivialAugment in its wide form, too."""
    erase: float = 0.0
    """Large images: erase a random rectangle with this probability."""
    repeats: int = 1
    """Repeated augmentation: so many differently augmented versions of an image in one batch, and
    so many fewer images in an epoch (DeiT and Swin train with 3 or 4).
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
    """Which samples are left out, where, and when."""

    method: str = "copies"
    """What decides which samples are left out. copies: near-duplicates of samples seen lately,
    before the model. paper: Partial Forward Blocking, inside the model. paper-before: its rule,
    before the model. uniform: random samples, the baseline to beat. full: none. release: as in the
    code of the paper's authors. infobatch, orderdp, selective-backprop: other published methods.
    MODULE:NAME: a rule of your own for pfb.BatchPruner, a function of features [N, D] (and the
    density).
    """
    prune: float = 0.4
    """Share of every batch that is left out, in [0, 1)."""
    fill: bool = False
    """Gather the samples that are kept to full batches: fewer steps, each of --batch-size."""
    start: float | None = None
    """Share of training before pruning starts: by default 0.05, with the paper's rule 2 / 90."""
    stop: float | None = None
    """Share of training after which all samples train again: by default 0.875, with the paper's
    rule 79 / 90.
    """
    ramp: int | None = None
    """Levels over which the share grows in the first half of the window: by default 0, with the
    paper's rule 8.
    """
    cut: str | None = None
    """paper: layer after which samples stop; by default the first stage."""
    channel_dim: int | None = None
    """paper: dimension of the cut's output that holds the channels, where it cannot be told: 1 for
    [N, C, H, W], -1 for [N, T, C].
    """
    n_centers: int = 100
    """paper: centers of the density."""
    beta: float = 0.01
    """paper: how far a center moves per step."""
    alpha: float = 0.01
    """paper: upper end of the random term, as a share of the batch's largest density."""
    feature_dim: int | None = 128
    """paper: wider features are reduced to so many dimensions."""
    memory: int | None = None
    """copies: number of samples that are remembered, by default 4,096; never more than a third of
    an epoch.
    """


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
    lr_schedule: Literal["onecycle", "cosine", "step", "constant"] = "onecycle"
    """onecycle: div 25, final div 1e4, 30 % warm-up. cosine: to --lr-end after --warmup. step: a
    tenth after each third of training.
    """
    warmup: float = 0.05
    """cosine: share of training over which the rate first grows linearly."""
    lr_end: float = 0.0
    """cosine: the rate at the end."""
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
