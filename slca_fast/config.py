"""Every setting of a run: frozen dataclasses, validated when made, one docstring per field."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from slca_fast.datasets import recipes
from slca_fast.errors import UserError, did_you_mean


def _require(condition: bool, option: str, value: object, fix: str) -> None:
    if not condition:
        raise UserError(f"--{option} is {value!r}: {fix}")


_MOST = 1_000_000
"""No count, rate, factor or number of megapixels or GB of a run is larger: float32 squares it with room to spare."""
_MOST_PIXELS = 4096
_MOST_THREADS = 1024
_LEAST_DIVISOR = 1e-6


def _require_moderate(section: str, settings: Any) -> None:
    """Raises UserError for a number of ``settings`` that is no finite number of at most ``_MOST``."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                _require(abs(number) <= _MOST, f"{section}.{f.name}", value, f"give a finite number, at most {_MOST:,}")


def _require_threads(option: str, value: int | None) -> None:
    _require(value is None or value >= 1, option, value, "give at least 1 thread, or leave it out")
    _require(value is None or value <= _MOST_THREADS, option, value, f"give at most {_MOST_THREADS} threads")


def _expand_home(settings: Any, name: str) -> None:
    """Writes ``~`` of a path out, which no shell does in a file or behind ``=``."""
    if (path := getattr(settings, name)) is not None:
        object.__setattr__(settings, name, os.path.expanduser(path))


def _require_positive(section: str, **values: float) -> None:
    for name, value in values.items():
        _require(value >= 0, f"{section}.{name}", value, "give a number >= 0")


@dataclass(frozen=True)
class TasksConfig:
    """How the classes are cut into tasks."""

    scenario: Literal["cil", "dil"] = "cil"
    """Class-incremental (disjoint classes) or domain-incremental (all classes, a new domain each task)."""
    initial: int = 10
    """Number of classes of the first task."""
    increment: int = 10
    """Number of classes of each later task; the last task takes the remainder."""
    sizes: tuple[int, ...] | None = None
    """Explicit number of classes of every task; overrides initial and increment and must sum to the classes."""
    shuffle: bool = True
    """Permute the class order by the seed, as the field does; false keeps the order of the class names."""

    def __post_init__(self) -> None:
        _require_moderate("tasks", self)
        _require(self.initial >= 1, "tasks.initial", self.initial, "give at least 1 class")
        _require(self.increment >= 1, "tasks.increment", self.increment, "give at least 1 class")
        if self.sizes is not None:
            object.__setattr__(self, "sizes", tuple(self.sizes))
            _require(
                len(self.sizes) > 0 and min(self.sizes) >= 1,
                "tasks.sizes",
                list(self.sizes),
                "list at least one task, each of at least 1 class",
            )


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and how they become tensors."""

    root: str | None = None
    """Folder that holds train/ and val/ (or test/), each with one folder per class; none: the embedded digits."""
    image_size: int = 224
    """Side of the square model input in pixels."""
    backend: Literal["auto", "pillow", "dali", "cache"] = "auto"
    """Who decodes and augments; all execute the same plan."""
    cache: Literal["auto", "gpu", "host", "off"] = "auto"
    """Where the current task's decoded images are kept."""
    cache_budget_gb: float | None = None
    """Most memory in GB that the resident cache may take; none: a share of what is free."""
    policy: Literal["fail", "quarantine"] = "fail"
    """What a bad file does: stop before training with the whole list, or be skipped, listed and counted."""
    recipe: str = "imagenet-r"
    """Training and test transforms, named after their data set (slca_fast/datasets.py); none: no augmentation."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean subtracted after scaling to [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation divided by."""
    exif_orientation: bool = False
    """Rotate images as their EXIF tag says; off, as the field's numbers were made."""
    max_megapixels: float = 100.0
    """Images larger than this are refused on their header alone, in 10^6 pixels."""
    num_workers: int | None = None
    """Decoding threads; none: one per CPU core."""
    prefetch: int = 2
    """Batches that DALI decodes ahead of the model."""
    hw_decoder_load: float = 0.9
    """Share of the JPEGs that DALI gives to the GPU's hardware decoder, where it has one."""

    def __post_init__(self) -> None:
        _require(self.image_size >= 1, "data.image_size", self.image_size, "give a side of at least 1 pixel")
        _require(self.image_size <= _MOST_PIXELS, "data.image_size", self.image_size, f"give at most {_MOST_PIXELS}")
        for name in ("mean", "std"):
            value = tuple(getattr(self, name))
            object.__setattr__(self, name, value)
            _require(len(value) == 3, f"data.{name}", value, "give three finite numbers, one per RGB channel")
        _require_moderate("data", self)
        _expand_home(self, "root")
        if self.recipe not in (known := recipes()):
            fix = f"give one of {', '.join(known)}{did_you_mean(self.recipe, known)}"
            raise UserError(f"--data.recipe is {self.recipe!r}: {fix}")
        _require(min(self.std) >= _LEAST_DIVISOR, "data.std", self.std, f"give numbers >= {_LEAST_DIVISOR:g}")
        _require_threads("data.num_workers", self.num_workers)
        _require(self.prefetch >= 1, "data.prefetch", self.prefetch, "decode at least 1 batch ahead")
        _require(0 <= self.hw_decoder_load <= 1, "data.hw_decoder_load", self.hw_decoder_load, "give a share in [0, 1]")
        _require(self.max_megapixels > 0, "data.max_megapixels", self.max_megapixels, "give a positive number")
        _require(
            self.cache_budget_gb is None or self.cache_budget_gb >= 0,
            "data.cache_budget_gb",
            self.cache_budget_gb,
            "give a number of GB >= 0, or leave it out",
        )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of frozen weights: W_eff = W + scale * B A."""

    rank: int = 0
    """Rank r of B A; 0 means no LoRA."""
    scale: float = 0.8
    """Factor on B A."""
    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv",)
    """Which linear layers of every block get LoRA."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        _require_moderate("model.lora", self)
        _require(self.rank >= 0, "model.lora.rank", self.rank, "give 0 (no LoRA) or a positive rank")
        _require_positive("model.lora", scale=self.scale)
        _require(len(self.targets) > 0, "model.lora.targets", list(self.targets), "name at least one layer kind")


_LOADER = """
cache_dir cfg checkpoint checkpoint_path default_cfg device dtype exportable external_default_cfg feature_cfg
feature_cls features_only kwargs_filter model model_cfg model_name no_jit num_classes out_indices pretrained
pretrained_cfg pretrained_cfg_overlay pretrained_custom_load pretrained_filter_fn pretrained_model_args
pretrained_strict pruned scriptable variant
"""
LOADER_ARGUMENTS = frozenset(_LOADER.split())
"""Arguments of timm that read files, fetch weights or change what is built; a received run could act through them."""


@dataclass(frozen=True)
class ModelConfig:
    """The pre-trained backbone and which of its parameters learn."""

    name: str = "vit_base_patch16_224.augreg_in21k"
    """Any timm vision transformer."""
    pretrained: bool = True
    """Let timm download the weights of ``name``; ignored when ``checkpoint`` is given."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of timm.create_model, e.g. ``{img_size: 64, patch_size: 8}``."""
    checkpoint: str | None = None
    """Local weights: .safetensors, Google's .npz, or a .pth (MoCo v3's prefixes are understood)."""
    trainable: Literal["full", "hybrid", "head"] = "full"
    """All of the backbone; norms, biases, class token and LoRA; or the heads only."""
    reset_final_norm: bool = True
    """Replace the pre-trained final norm by a fresh LayerNorm of eps 1e-5, as the official code does."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """LoRA settings."""

    def __post_init__(self) -> None:
        _require(
            self.lora.rank == 0 or self.trainable == "hybrid",
            "model.lora.rank",
            self.lora.rank,
            "LoRA needs --model.trainable hybrid",
        )
        _expand_home(self, "checkpoint")
        for name, value in self.kwargs.items():
            if name.endswith("_rate") and isinstance(value, int | float):
                _require(0 <= value < 1, f"model.kwargs.{name}", value, "give a share in [0, 1)")
            _require(
                name not in LOADER_ARGUMENTS,
                f"model.kwargs.{name}",
                value,
                "leave it out: a run sets this argument of timm itself, has heads of its own and takes weights from "
                "--model.checkpoint or --model.pretrained",
            )


@dataclass(frozen=True)
class OptimConfig:
    """Stage 1: fine-tuning on one task."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer; a fresh one for every task."""
    lr: float = 0.01
    """Learning rate of the current head."""
    backbone_lr_scale: float = 0.01
    """Backbone learning rate over the head's: the slow learner (1 = one rate for all)."""
    lora_lr_scale_first: float = 0.5
    """LoRA learning rate over the head's on the first task; later tasks use backbone_lr_scale."""
    momentum: float = 0.9
    """SGD momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates."""
    weight_decay: float = 5e-4
    """Weight decay of every group."""
    epochs: int = 50
    """Passes over a task's images."""
    batch_size: int = 128
    """Images per optimizer step over all ranks; the last partial batch is kept."""
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    """Stepped once per epoch; cosine ends at lr * backbone_lr_scale * 0.1^len(milestones) for every group."""
    milestones: tuple[int, ...] = ()
    """Epochs after which multistep multiplies the rates by 0.1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "betas", tuple(self.betas))
        _require_moderate("optim", self)
        _require_positive(
            "optim",
            lr=self.lr,
            backbone_lr_scale=self.backbone_lr_scale,
            momentum=self.momentum,
            lora_lr_scale_first=self.lora_lr_scale_first,
            weight_decay=self.weight_decay,
        )
        _require(self.momentum < 1, "optim.momentum", self.momentum, "give a number in [0, 1)")
        _require(self.epochs >= 1, "optim.epochs", self.epochs, "train for at least 1 epoch")
        _require(self.batch_size >= 1, "optim.batch_size", self.batch_size, "give at least 1 image")
        _require(all(m >= 1 for m in self.milestones), "optim.milestones", list(self.milestones), "give epochs >= 1")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "optim.betas",
            self.betas,
            "give two numbers in [0, 1)",
        )


@dataclass(frozen=True)
class LossConfig:
    """Symmetric cross-entropy: ce_weight * CE + rce_weight * RCE."""

    ce_weight: float = 1.0
    """Weight a of the cross-entropy."""
    rce_weight: float = 0.0
    """Weight b of the reverse cross-entropy; 0 means plain cross-entropy."""

    def __post_init__(self) -> None:
        _require_moderate("loss", self)
        _require_positive("loss", ce_weight=self.ce_weight, rce_weight=self.rce_weight)
        _require(
            self.ce_weight + self.rce_weight > 0,
            "loss.ce_weight",
            self.ce_weight,
            "at least one of ce_weight and rce_weight must be positive",
        )


@dataclass(frozen=True)
class AlignConfig:
    """Stage 2: classifier alignment on features sampled from the class Gaussians."""

    epochs: int = 5
    """Passes; 0 means no alignment (and no class statistics)."""
    samples_per_class: int = 256
    """Features drawn per class and epoch, and the batch size of the pass."""
    lr: float = 0.01
    """SGD learning rate, cosine to 0 over the epochs."""
    momentum: float = 0.9
    """SGD momentum."""
    temperature: float = 0.1
    """tau of the task-normalized cross-entropy."""
    ridge: float = 1e-4
    """Added to the diagonal of every class covariance."""
    feature_scale: float = 0.0
    """mu of SLCA++: samples of old tasks shrink by 1/(1 + r (t - t_c)), inference scales by 1 + mu (t - k)."""
    mean_scaling: bool = True
    """SLCA: class means are scaled by 0.9 + 0.1 (t_c + 1)/(t + 1) before sampling."""

    def __post_init__(self) -> None:
        _require_moderate("align", self)
        _require(self.epochs >= 0, "align.epochs", self.epochs, "give 0 (no alignment) or more epochs")
        _require(self.samples_per_class >= 1, "align.samples_per_class", self.samples_per_class, "give at least 1")
        _require_positive(
            "align", lr=self.lr, momentum=self.momentum, ridge=self.ridge, feature_scale=self.feature_scale
        )
        _require(self.momentum < 1, "align.momentum", self.momentum, "give a number in [0, 1)")
        _require(
            self.temperature >= _LEAST_DIVISOR,
            "align.temperature",
            self.temperature,
            f"give a number >= {_LEAST_DIVISOR:g}",
        )
        _require(
            not (self.mean_scaling and self.feature_scale > 0),
            "align.feature_scale",
            self.feature_scale,
            "SLCA++'s feature scaling and SLCA's --align.mean_scaling exclude each other; turn one off",
        )


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and in which arithmetic a run executes."""

    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the backbone; auto: bf16 on CUDA, fp32 on the CPU."""
    compile: bool | None = None
    """torch.compile the training step; none: on for CUDA, off on the CPU."""
    attention: Literal["auto", "sdpa", "bmm", "cudnn", "flash"] = "auto"
    """Attention implementation; auto: sdpa in fp32, in bf16 the fastest of a short measurement, kept in a file."""
    num_threads: int | None = None
    """CPU threads of torch; none: torch's default."""

    def __post_init__(self) -> None:
        _require_moderate("runtime", self)
        _require_threads("runtime.num_threads", self.num_threads)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation besides the one after every task."""

    every_epochs: int = 0
    """Log train and test accuracy every so many epochs of stage 1 (the official code: 5); 0: never."""

    def __post_init__(self) -> None:
        _require_moderate("eval", self)
        _require(self.every_epochs >= 0, "eval.every_epochs", self.every_epochs, "give 0 (never) or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run saves so that it can go on after a crash. Every finished task is always saved."""

    every_minutes: float = 10.0
    """Least time between two checkpoints within a task, in minutes; 0: after every epoch. Longer on a disk
    so slow that writing would take more than a hundredth of the time."""
    keep: int = 2
    """How many of the newest checkpoints stay."""

    def __post_init__(self) -> None:
        _require_moderate("checkpoint", self)
        _require_positive("checkpoint", every_minutes=self.every_minutes)
        _require(self.keep >= 1, "checkpoint.keep", self.keep, "keep at least 1")


@dataclass(frozen=True)
class TrackConfig:
    """Optional experiment trackers; metrics.jsonl is always written."""

    tensorboard: bool = False
    """Also write TensorBoard event files (needs the package tensorboard)."""
    wandb: bool = False
    """Also log to Weights & Biases (needs the package wandb)."""


@dataclass(frozen=True)
class Config:
    """One run, completely."""

    seed: int = 1993
    """Fixes the class order, the initial heads, the data order and augmentation, and the sampled features."""
    output: str | None = None
    """Run folder; none: runs/<preset>-seed<seed>."""
    method: str = "slca"
    """What is remembered of a task and how it classifies: seqft, slowft, probe, joint, slca, slcapp or ncm."""
    method_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of that method alone, e.g. ``{metric: euclidean}`` for ncm; those of slca and slcapp are ``align``."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    """Cutting the classes into tasks."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Backbone."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Stage 1."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Stage 1's loss."""
    align: AlignConfig = field(default_factory=AlignConfig)
    """Stage 2."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """Device and arithmetic."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Extra evaluations."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Crash safety."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Experiment trackers."""

    def __post_init__(self) -> None:
        _expand_home(self, "output")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "give an integer in [0, 2^32)")
