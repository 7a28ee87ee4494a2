"""Named configurations: the published ones, their baselines, and the embedded demo.

Values are those of the published configuration files of SLCA (arXiv 2303.05118) and SLCA++ (arXiv 2408.08295).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from slca_fast.config import (
    AlignConfig,
    Config,
    DataConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TasksConfig,
)
from slca_fast.methods.table import METHODS

Dataset = Literal["cifar100", "imagenet-r", "cub200", "cars196", "domainnet"]
Weights = Literal["in21k", "mocov3"]

DATASETS: tuple[str, ...] = ("cifar100", "imagenet-r", "cub200", "cars196", "domainnet")
NUM_CLASSES = {"cifar100": 100, "imagenet-r": 200, "cub200": 200, "cars196": 196, "domainnet": 345}
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def _model(weights: str) -> ModelConfig:
    if weights == "in21k":
        return ModelConfig(name="vit_base_patch16_224.augreg_in21k", pretrained=True)
    # MoCo v3's ViT-B has no timm download: the user's .pth comes with --model.checkpoint.
    return ModelConfig(name="vit_base_patch16_224", pretrained=False)


def _data(dataset: str) -> DataConfig:
    if dataset == "cifar100":
        return DataConfig(recipe="cifar100", mean=CIFAR_MEAN, std=CIFAR_STD)
    return DataConfig(recipe=dataset)


def _tasks(dataset: str) -> TasksConfig:
    if dataset == "domainnet":
        # Domains arrive in the field's order, so the classes need no permutation.
        return TasksConfig(scenario="dil", shuffle=False)
    per_task = 10 if dataset == "cifar100" else 20
    return TasksConfig(initial=per_task, increment=per_task)


def _epochs(dataset: str, weights: str) -> int:
    if weights == "mocov3":
        return 90
    return {"cifar100": 20, "domainnet": 20}.get(dataset, 50)


def slca(dataset: str, weights: str) -> Config:
    """SLCA: full fine-tuning with a slow learner, then alignment (paper: Table 1; published configurations)."""
    last_drop = {20: 18, 50: 40, 90: 80}[_epochs(dataset, weights)]
    return Config(
        method="slca",
        tasks=_tasks(dataset),
        data=_data(dataset),
        model=_model(weights),
        optim=OptimConfig(
            epochs=_epochs(dataset, weights),
            backbone_lr_scale=0.01,
            weight_decay=5e-4,
            schedule="multistep",
            milestones=(last_drop,),
        ),
        align=AlignConfig(temperature=0.05 if dataset == "cars196" else 0.1),
    )


def slcapp(dataset: str, weights: str) -> Config:
    """SLCA++: LoRA on qkv with norms and biases, symmetric cross-entropy, then alignment with feature scaling."""
    base = slca(dataset, weights)
    # Fine-grained ImageNet-R and Cars use the stronger reverse term and no weight decay.
    strong = dataset in ("imagenet-r", "cars196")
    milestones = (60, 80) if weights == "mocov3" else base.optim.milestones
    return replace(
        base,
        method="slcapp",
        model=replace(base.model, trainable="hybrid", lora=LoraConfig(rank=4)),
        optim=replace(
            base.optim,
            backbone_lr_scale=0.1,
            weight_decay=0.0 if strong else 5e-4,
            schedule="cosine",
            milestones=milestones,
        ),
        loss=LossConfig(0.5, 0.5) if strong else LossConfig(1.0, 0.1),
        align=replace(base.align, mean_scaling=False, feature_scale=0.02),
    )


def slowft(dataset: str, weights: str) -> Config:
    """Sequential fine-tuning with SLCA's slow learner and no alignment."""
    base = slca(dataset, weights)
    return replace(base, method="slowft", align=replace(base.align, epochs=0))


def seqft(dataset: str, weights: str) -> Config:
    """Sequential fine-tuning with one learning rate for backbone and head, and no alignment."""
    base = slowft(dataset, weights)
    return replace(base, method="seqft", optim=replace(base.optim, backbone_lr_scale=1.0))


def probe(dataset: str, weights: str) -> Config:
    """Linear probing: the backbone stays frozen, one head per task, no alignment."""
    base = slowft(dataset, weights)
    model = replace(base.model, trainable="head", reset_final_norm=False)
    return replace(base, method="probe", model=model)


def joint(dataset: str, weights: str) -> Config:
    """The upper bound: SLCA's slow learner on all classes at once, as one task."""
    base = slowft(dataset, weights)
    return replace(base, method="joint", tasks=joint_tasks(NUM_CLASSES[dataset]))


def joint_tasks(num_classes: int) -> TasksConfig:
    """One task that holds every class."""
    return TasksConfig(scenario="cil", sizes=(num_classes,))


def trained_as_slcapp(method: str, dataset: str, weights: str) -> Config:
    """Stage 1 of SLCA++, then another method: for methods without a published configuration of their own."""
    return replace(slcapp(dataset, weights), method=method)


_OWN: dict[str, Callable[[str, str], Config]] = {
    "seqft": seqft,
    "slowft": slowft,
    "probe": probe,
    "joint": joint,
    "slca": slca,
    "slcapp": slcapp,
}
MAKERS: dict[str, Callable[[str, str], Config]] = {
    method: _OWN.get(method, partial(trained_as_slcapp, method)) for method in METHODS
}


def demo(method: str = "slcapp") -> Config:
    """``method`` on the embedded stream: scikit-learn's digits at 32 px, 5 tasks of 2 classes."""
    base = MAKERS[method]("cub200", "in21k")
    tasks = joint_tasks(10) if method == "joint" else TasksConfig(initial=2, increment=2)
    return replace(
        base,
        tasks=tasks,
        data=DataConfig(root=None, image_size=32, recipe="cub200"),
        model=replace(
            base.model,
            name="vit_tiny_patch16_224",
            pretrained=False,
            checkpoint="embedded",
            kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3},
        ),
        optim=replace(
            base.optim,
            epochs=5,
            batch_size=16,
            milestones=(4,),
            backbone_lr_scale=1.0 if method == "seqft" else 0.1,
        ),
    )


def _table() -> dict[str, Callable[[], Config]]:
    table: dict[str, Callable[[], Config]] = {"demo": demo}
    for method, make in MAKERS.items():
        table[f"demo-{method}"] = partial(demo, method)
        for dataset in DATASETS:
            for weights in ("in21k", "mocov3"):
                table[f"{method}-{dataset}-{weights}"] = partial(make, dataset, weights)
    return table


PRESETS = _table()


def describe(name: str) -> str:
    """One line on what preset ``name`` trains."""
    about, demo = METHODS[PRESETS[name]().method], name.startswith("demo")
    return f"{about.title}: {about.summary}." + (" On the embedded digits." if demo else "")
