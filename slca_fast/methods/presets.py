"""Named configurations: the published ones, their baselines, and the embedded demo.

Values are those of the published configuration files of SLCA (arXiv 2303.05118) and SLCA++ (arXiv 2408.08295); what
depends on the data set, and which have no published file, stands in slca_fast/datasets.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

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
from slca_fast.datasets import DATASETS
from slca_fast.methods.table import METHODS

WEIGHTS = ("in21k", "mocov3")


def _model(weights: str) -> ModelConfig:
    if weights == "in21k":
        return ModelConfig(name="vit_base_patch16_224.augreg_in21k", pretrained=True)
    # MoCo v3's ViT-B has no timm download: the user's .pth comes with --model.checkpoint.
    return ModelConfig(name="vit_base_patch16_224", pretrained=False)


def _data(dataset: str) -> DataConfig:
    return DataConfig(recipe=dataset, mean=DATASETS[dataset].mean, std=DATASETS[dataset].std)


def _tasks(dataset: str) -> TasksConfig:
    per_task = DATASETS[dataset].training.classes_per_task
    if per_task is None:
        # Domains arrive in the field's order, so the classes need no permutation.
        return TasksConfig(scenario="dil", shuffle=False)
    return TasksConfig(initial=per_task, increment=per_task)


def slca(dataset: str, weights: str) -> Config:
    """SLCA: full fine-tuning with a slow learner, then alignment (paper: Table 1; published configurations)."""
    training = DATASETS[dataset].training
    schedule = training.schedule(weights)
    return Config(
        method="slca",
        tasks=_tasks(dataset),
        data=_data(dataset),
        model=_model(weights),
        optim=OptimConfig(
            epochs=schedule.epochs,
            backbone_lr_scale=0.01,
            weight_decay=5e-4,
            schedule="multistep",
            milestones=schedule.slca_milestones,
        ),
        align=AlignConfig(temperature=training.temperature),
    )


def slcapp(dataset: str, weights: str) -> Config:
    """SLCA++: LoRA on qkv with norms and biases, symmetric cross-entropy, then alignment with feature scaling."""
    base = slca(dataset, weights)
    training = DATASETS[dataset].training
    return replace(
        base,
        method="slcapp",
        model=replace(base.model, trainable="hybrid", lora=LoraConfig(rank=4)),
        optim=replace(
            base.optim,
            backbone_lr_scale=0.1,
            weight_decay=training.slcapp_weight_decay,
            schedule="cosine",
            milestones=training.schedule(weights).slcapp_milestones,
        ),
        loss=LossConfig(*training.sce_weights),
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
    return replace(base, method="joint", tasks=joint_tasks(DATASETS[dataset].num_classes))


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
            for weights in WEIGHTS:
                table[f"{method}-{dataset}-{weights}"] = partial(make, dataset, weights)
    return table


PRESETS = _table()


def describe(name: str) -> str:
    """One line on what preset ``name`` trains."""
    about, demo = METHODS[PRESETS[name]().method], name.startswith("demo")
    return f"{about.title}: {about.summary}." + (" On the embedded digits." if demo else "")
