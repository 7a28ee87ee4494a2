"""Stage 2: classifier alignment on features sampled from the class Gaussians."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slca_fast.config import AlignConfig
from slca_fast.errors import UserError
from slca_fast.machine.environment import memory_bytes
from slca_fast.methods.age_scaling import age_scaling, task_age
from slca_fast.methods.alignment_steps import AlignmentSteps
from slca_fast.methods.gaussians import ClassGaussians
from slca_fast.model.head import LinearClassifier
from slca_fast.seeds import alignment_key
from slca_fast.training.optim import cosine

_MOST, _LEAST_TEMPERATURE = 1e6, 1e-6


def align_classifier(
    weight_CD: Tensor,
    bias_C: Tensor,
    gaussians: ClassGaussians,
    task_sizes: Sequence[int],
    *,
    epochs: int = 5,
    samples_per_class: int = 256,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    temperature: float = 0.1,
    feature_scale: float = 0.0,
    mean_scaling: bool = False,
    fold: bool = False,
    generator: torch.Generator | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> tuple[Tensor, Tensor]:
    """Aligns all heads on sampled features and returns new ``(weight [C, D], bias [C])``; the inputs stay as they are.

    weight_CD, bias_C: floating point; the results have their dtypes and devices, computed in float32.

    ``task_sizes`` cuts the C classes into the tasks in which they arrived; the last task is the current one t.
    Every epoch draws ``samples_per_class`` features of each class from its Gaussian, shuffles them and makes one pass
    of as many SGD steps with the task-normalized cross-entropy (SLCA Sec. 4.2; SLCA++ Sec. 4.3). A class without rows
    (a domain may lack one) has no samples of its own, others are told from it. ``mean_scaling`` is SLCA's
    scaling of the class means by 0.9 + 0.1 (t_c + 1)/(t + 1), ``feature_scale`` SLCA++'s random shrinking of old
    tasks' samples; they exclude each other. ``fold`` multiplies the weights of head k by SLCA++'s inference scale,
    1 + feature_scale (t - k), so that plain logits are the scaled ones; do not align such weights again.
    ``generator`` may be on any device. ``on_epoch`` is told each epoch's mean loss. Raises ValueError for shapes that
    do not fit and settings out of range.
    """
    _validate_heads(weight_CD, bias_C, task_sizes)
    _validate_settings(
        epochs,
        samples_per_class,
        mean_scaling,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        temperature=temperature,
        feature_scale=feature_scale,
    )
    num_classes, dim = weight_CD.shape
    if gaussians.feature_dim != dim:
        raise ValueError(f"the Gaussians have width {gaussians.feature_dim} but weight has {dim} columns")
    known = gaussians.counts.nonzero().flatten().tolist()
    if not known or gaussians.num_classes > num_classes:
        raise ValueError(f"there are Gaussians for {gaussians.num_classes} classes but weight has {num_classes} rows")
    age_C = torch.as_tensor(task_age(task_sizes), dtype=torch.float32)
    scaling = age_scaling(mean_scaling, feature_scale)
    mean_scale_C = scaling.mean_scale(age_C, len(task_sizes))
    if mean_scale_C is not None:
        mean_scale_C = mean_scale_C[: gaussians.num_classes]
    age_S = age_C[known].repeat_interleave(samples_per_class)

    steps = AlignmentSteps(
        weight_CD,
        bias_C,
        task_sizes,
        momentum=momentum,
        weight_decay=weight_decay,
        temperature=temperature,
        batch_size=samples_per_class,
    )
    for epoch in range(epochs):
        features, labels = gaussians.sample(
            samples_per_class, generator=generator, mean_scale_C=mean_scale_C, classes=known
        )
        features = scaling.scaled(features, age_S, generator)
        order = torch.randperm(len(labels), generator=generator, device=_device(generator)).to(labels.device)
        loss = steps.run_epoch(features[order], labels[order], cosine(lr, 0.0, epoch, epochs))
        on_epoch(epoch, loss)
    aligned = LinearClassifier(steps.weight_CD, steps.bias_C, tuple(task_sizes))
    if fold:
        aligned = scaling.folded(aligned)
    return aligned.weight_CD.to(weight_CD.dtype), aligned.bias_C.to(bias_C.dtype)


def _validate_heads(weight_CD: Tensor, bias_C: Tensor, task_sizes: Sequence[int]) -> None:
    if not isinstance(weight_CD, Tensor) or weight_CD.dim() != 2 or not weight_CD.is_floating_point():
        raise ValueError(f"weight must be a floating-point tensor [C, D], got {_described(weight_CD)}")
    num_classes = weight_CD.shape[0]
    if not isinstance(bias_C, Tensor) or bias_C.shape != (num_classes,) or not bias_C.is_floating_point():
        raise ValueError(
            f"bias must be a floating-point tensor [{num_classes}], got {_described(bias_C)}; "
            "pass zeros for heads without one"
        )
    if bias_C.device != weight_CD.device:
        raise ValueError(f"weight is on {weight_CD.device}, bias on {bias_C.device}; move one of them")
    if min(task_sizes, default=0) < 1:
        raise ValueError(f"task_sizes must be numbers >= 1, got {list(task_sizes)}")
    if sum(task_sizes) != num_classes:
        raise ValueError(f"task_sizes {list(task_sizes)} sum to {sum(task_sizes)} but weight has {num_classes} rows")


def _validate_settings(epochs: int, samples_per_class: int, mean_scaling: bool, **numbers: float) -> None:
    if epochs < 0:
        raise ValueError(f"epochs must be >= 0, got {epochs}")
    if samples_per_class < 1:
        raise ValueError(f"samples_per_class must be >= 1, got {samples_per_class}")
    for name, value in numbers.items():
        if not value >= 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
        if value > _MOST:
            raise ValueError(f"{name} must be at most {_MOST:g}, got {value}")
    if numbers["momentum"] >= 1:
        raise ValueError(f"momentum must be below 1, got {numbers['momentum']}")
    if numbers["temperature"] < _LEAST_TEMPERATURE:
        raise ValueError(
            f"temperature must be positive, got {numbers['temperature']}; give at least {_LEAST_TEMPERATURE:g}"
        )
    feature_scale = numbers["feature_scale"]
    if mean_scaling and feature_scale > 0:
        raise ValueError(
            f"mean_scaling (SLCA) and feature_scale (SLCA++), here {feature_scale}, exclude each other; turn one off"
        )


def require_memory(config: AlignConfig, num_labels: int, feature_dim: int, device: torch.device) -> None:
    """Raises UserError when ``device`` cannot hold an epoch's features of all labels, sampled and shuffled."""
    bytes_per_sample, held = 2 * 4 * num_labels * feature_dim, memory_bytes(device)
    if config.epochs > 0 and config.samples_per_class * bytes_per_sample > held:
        needed = config.samples_per_class * bytes_per_sample / 1e9
        raise UserError(
            f"--align.samples_per_class is {config.samples_per_class}: the features of {num_labels} labels would take "
            f"{needed:,.0f} GB of the {held / 1e9:,.0f} GB there are; give at most {held // bytes_per_sample}"
        )


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def align(
    classifier: LinearClassifier,
    gaussians: ClassGaussians,
    config: AlignConfig,
    weight_decay: float,
    seed: int,
    on_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> LinearClassifier:
    """The aligned classifier for evaluation after the current task: a new value with the inference scales folded in.

    The samples depend on ``seed`` and the number of tasks only. The first task needs no alignment.
    """
    task = len(classifier.task_sizes) - 1
    if config.epochs == 0 or task == 0:
        return classifier
    generator = torch.Generator().manual_seed(alignment_key(seed, task))
    weight, bias = align_classifier(
        classifier.weight_CD,
        classifier.bias_C,
        gaussians,
        classifier.task_sizes,
        epochs=config.epochs,
        samples_per_class=config.samples_per_class,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=weight_decay,
        temperature=config.temperature,
        feature_scale=config.feature_scale,
        mean_scaling=config.mean_scaling,
        fold=True,
        generator=generator,
        on_epoch=on_epoch,
    )
    return LinearClassifier(weight, bias, classifier.task_sizes)
