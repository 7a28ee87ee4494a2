"""A whole run in the official code's way, as the baseline of the benchmarks: plain eager fp32, in our own words.

What it does as SLCA's and SLCA++'s public code does, and the fast path does not: torchvision transforms in DataLoader
workers that start anew for every pass (8 for training and testing, 4 for one loader per class in the statistics, at
batch 64), accuracy passes over training and test images every 5 epochs, a test pass after every alignment epoch, one
MultivariateNormal per class and alignment epoch, one linear layer per head and a concatenation, LoRA as the matrix
W + s B A with the full gradient of W, attention as two products and a softmax, ``loss.item()`` every step.
Task boundaries are the true ones.
``python -m slca_fast.benchmark.official_way slca FOLDER`` runs it on an image folder.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

from slca_fast.config import Config
from slca_fast.data.index import ImageIndex, load_dataset
from slca_fast.machine.environment import pick_device
from slca_fast.model.build import build_backbone
from slca_fast.model.class_token import plain_features, set_attention
from slca_fast.model.head import Classifier
from slca_fast.model.lora import LoraLinear
from slca_fast.tasks import TaskPlan, plan_tasks

TRAIN_WORKERS, STATISTICS_WORKERS, STATISTICS_BATCH = 8, 4, 64
ACCURACY_EVERY = 5
LoaderBatch = tuple[Tensor, Tensor, Tensor]


class Images(Dataset):
    """Files of some labels: ``(position, image, label)`` per item; labels are positions in the class order."""

    def __init__(self, index: ImageIndex, plan: TaskPlan, first: int, end: int, transform) -> None:
        label_N = plan.labels_of(index.label_N, index.domain_N)
        self._items = [(str(index.path_of(i)), int(y)) for i, y in enumerate(label_N) if first <= y < end]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, position: int) -> tuple[int, Tensor, int]:
        path, label = self._items[position]
        return position, self._transform(pil_loader(path)), label


def plan_of(config: Config, num_classes: int) -> TaskPlan:
    """The run's classes, cut into tasks."""
    tasks = config.tasks
    return plan_tasks(
        num_classes,
        config.seed,
        initial=tasks.initial,
        increment=tasks.increment,
        sizes=tasks.sizes,
        shuffle=tasks.shuffle,
    )


def train_transform(config: Config):
    """ImageNet-R's training transform at the configured size."""
    crop = transforms.RandomResizedCrop(config.data.image_size, interpolation=transforms.InterpolationMode.BICUBIC)
    return _to_input(config, [crop, transforms.RandomHorizontalFlip()])


def test_transform(config: Config):
    """Resize to 256/224 of the size, centre crop."""
    size = config.data.image_size
    resize = transforms.Resize(size * 256 // 224, interpolation=transforms.InterpolationMode.BICUBIC)
    return _to_input(config, [resize, transforms.CenterCrop(size)])


test_transform.__test__ = False


def _to_input(config: Config, steps: list):
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(config.data.mean, config.data.std)])


class MaterialisedLora(nn.Linear):
    """W + s B A as a matrix in every forward; autograd makes the gradient of that whole matrix."""

    def __init__(self, lora: LoraLinear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = lora.in_features, lora.out_features
        self.weight, self.bias, self.scale = lora.weight, lora.bias, lora.scale
        self.lora_A, self.lora_B = lora.lora_A, lora.lora_B

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.scale * (self.lora_B @ self.lora_A), self.bias)


@dataclass
class OfficialLearner:
    """Model, heads and statistics of a run in the official way, on the CPU or a GPU, in fp32."""

    config: Config
    plan: TaskPlan
    device: torch.device
    means: list[Tensor] = field(default_factory=list)
    covariances: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        backbone = build_backbone(self.config.model, self.config.data.image_size, self.config.seed)
        self.vit = backbone.vit.to(self.device)
        set_attention(self.vit, "bmm")
        self.trained_names = {n for n, p in self.vit.named_parameters() if p.requires_grad}
        blocks: Any = self.vit.blocks
        for block in blocks:
            if isinstance(block.attn.qkv, LoraLinear):
                block.attn.qkv = MaterialisedLora(block.attn.qkv)
                # The official code pays for LoRA here too, but its optimizer leaves it out, so B stays 0.
                rank, scale = self.config.model.lora.rank, self.config.model.lora.scale
                block.mlp.fc1 = MaterialisedLora(LoraLinear(block.mlp.fc1, rank, scale))
                block.mlp.fc2 = MaterialisedLora(LoraLinear(block.mlp.fc2, rank, scale))
        self.heads = Classifier(backbone.feature_dim)

    def features(self, images: Tensor) -> Tensor:
        return plain_features(self.vit, images.to(self.device))

    def logits(self, features: Tensor, heads: nn.ModuleList | None = None, scales: list[float] | None = None) -> Tensor:
        heads = self.heads.heads if heads is None else heads
        scales = scales or [1.0] * len(heads)
        return torch.cat([head(features * scale) for head, scale in zip(heads, scales)], dim=1)

    # Stage 1

    def begin_task(self, task: int) -> None:
        optim, model = self.config.optim, self.config.model
        head = self.heads.grow(self.plan.sizes[task], self.config.seed, self.device)
        lora_scale = optim.lora_lr_scale_first if task == 0 else optim.backbone_lr_scale
        named = [(n, p) for n, p in self.vit.named_parameters() if n in self.trained_names]
        is_lora = [n.rsplit(".", 1)[-1] in ("lora_A", "lora_B") for n, _ in named]
        groups = [
            {"params": [p for (_, p), lora in zip(named, is_lora) if lora], "lr": optim.lr * lora_scale},
            {
                "params": [p for (_, p), lora in zip(named, is_lora) if not lora],
                "lr": optim.lr * optim.backbone_lr_scale,
            },
            {"params": list(head.parameters()), "lr": optim.lr},
        ]
        assert model.trainable != "head" and optim.name == "sgd"
        self.optimizer = torch.optim.SGD(
            [g for g in groups if g["params"]], lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
        )
        if optim.schedule == "cosine":
            floor = optim.lr * optim.backbone_lr_scale * 0.1 ** len(optim.milestones)
            self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, optim.epochs, eta_min=floor)
        else:
            self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, list(optim.milestones), gamma=0.1)

    def train_epoch(self, batches: Iterable[LoaderBatch], task: int) -> list[float]:
        """One epoch; the loss of every step."""
        self.vit.train()
        first, loss_config, losses = self.plan.offsets[task], self.config.loss, []
        for _, images, labels in batches:
            logits = self.logits(self.features(images))[:, first:]
            target = labels.to(self.device) - first
            loss = loss_config.ce_weight * F.cross_entropy(logits, target)
            if loss_config.rce_weight:
                probability = F.softmax(logits, dim=1).clamp(1e-7, 1.0)
                one_hot = F.one_hot(target, logits.shape[1]).float().clamp(1e-4, 1.0)
                loss = loss - loss_config.rce_weight * (probability * one_hot.log()).sum(dim=1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        self.scheduler.step()
        return losses

    @torch.no_grad()
    def accuracy(self, batches: Iterable[LoaderBatch], heads=None, scales=None) -> float:
        """Top-1 in percent."""
        self.vit.eval()
        hits = total = 0
        for _, images, labels in batches:
            predicted = self.logits(self.features(images), heads, scales).argmax(dim=1).cpu()
            hits, total = hits + int((predicted == labels).sum()), total + len(labels)
        return 100 * hits / total

    # Statistics

    @torch.no_grad()
    def measure_class(self, batches: Iterable[LoaderBatch]) -> None:
        """Mean and covariance (plus the ridge) of the next class, float64."""
        self.vit.eval()
        vectors = torch.cat([self.features(images).cpu() for _, images, _ in batches]).double()
        self.means.append(vectors.mean(0))
        ridge = self.config.align.ridge * torch.eye(vectors.shape[1], dtype=torch.float64)
        self.covariances.append((torch.cov(vectors.T) + ridge).float())

    # Alignment

    def begin_alignment(self) -> tuple[nn.ModuleList, torch.optim.Optimizer]:
        """A copy of all heads, trainable, and their optimizer."""
        heads = nn.ModuleList(
            nn.Linear(head.in_features, head.out_features, device=self.device) for head in self.heads.linears
        )
        heads.load_state_dict(self.heads.heads.state_dict())
        align = self.config.align
        return heads, torch.optim.SGD(
            heads.parameters(), lr=align.lr, momentum=align.momentum, weight_decay=self.config.optim.weight_decay
        )

    def sample_epoch(self, task: int) -> tuple[Tensor, Tensor]:
        """Shuffled features of all seen classes and their labels."""
        align, features, labels = self.config.align, [], []
        for label in range(self.plan.offsets[task + 1]):
            age = task - int(self.plan.task_of_label[label])
            mean = self.means[label]
            if align.mean_scaling:
                mean = mean * (0.9 + 0.1 * (task - age + 1) / (task + 1))
            drawn = MultivariateNormal(mean.float().to(self.device), self.covariances[label].to(self.device)).sample(
                (align.samples_per_class,)
            )
            if align.feature_scale > 0:
                r = align.feature_scale + 0.02 * (torch.rand(len(drawn), device=self.device) - 0.5)
                drawn = drawn / (1 + r * age)[:, None]
            features.append(drawn)
            labels.append(torch.full((len(drawn),), label, device=self.device))
        order = torch.randperm(sum(len(f) for f in features))
        return torch.cat(features)[order], torch.cat(labels)[order]

    def align_epoch(self, heads, optimizer, features: Tensor, labels: Tensor, task: int) -> float:
        """One pass of SGD over sampled features in batches; the mean loss."""
        size, sizes, total = self.config.align.samples_per_class, self.plan.sizes[: task + 1], 0.0
        for inputs, target in zip(features.split(size), labels.split(size)):
            logits = self.logits(inputs, heads)
            norms = [part.norm(p=2, dim=-1, keepdim=True) + 1e-7 for part in logits.split(sizes, dim=1)]
            mean_norm = torch.cat(norms, dim=-1).mean(dim=-1, keepdim=True)
            loss = F.cross_entropy(logits / mean_norm / self.config.align.temperature, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / len(labels.unique())


def run_official(config: Config, num_tasks: int | None = None, on_line=lambda text: None) -> dict:
    """The whole run: ``{accuracy_curve, phase_seconds, total_seconds, train_images, test_images}``.

    On ``config.runtime.device``, as ours. ``phase_seconds["stage1"]`` is training alone; ``accuracy`` the periodic
    passes. ``num_tasks`` stops early. Raises UserError for a device that is not there.
    """
    device = pick_device(config.runtime.device)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    began = time.perf_counter()
    dataset = load_dataset(config.data)
    plan = plan_tasks(len(dataset.class_names), config.seed, **asdict(config.tasks))
    learner = OfficialLearner(config, plan, device)
    phases = ("stage1", "accuracy", "statistics", "alignment", "evaluation", "other")
    seconds: dict[str, float] = dict.fromkeys(phases, 0.0)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] += time.perf_counter() - start

    to_train, to_test = train_transform(config), test_transform(config)
    curve = []
    torch.manual_seed(1)
    for task in range(plan.num_tasks if num_tasks is None else num_tasks):
        first, end = plan.offsets[task], plan.offsets[task + 1]
        train = DataLoader(
            Images(dataset.train, plan, first, end, to_train),
            config.optim.batch_size,
            shuffle=True,
            num_workers=TRAIN_WORKERS,
        )
        test = DataLoader(
            Images(dataset.test, plan, 0, end, to_test), config.optim.batch_size, num_workers=TRAIN_WORKERS
        )
        learner.begin_task(task)
        for epoch in range(1, config.optim.epochs + 1):
            with phase("stage1"):
                learner.train_epoch(train, task)
            if epoch % ACCURACY_EVERY == 0:
                with phase("accuracy"):
                    learner.accuracy(train)
                    learner.accuracy(test)
        heads, scales = learner.heads.heads, None
        if config.align.epochs > 0:
            with phase("statistics"):
                for label in range(first, end):
                    images = Images(dataset.train, plan, label, label + 1, to_test)
                    learner.measure_class(DataLoader(images, STATISTICS_BATCH, num_workers=STATISTICS_WORKERS))
            if task > 0:
                with phase("alignment"):
                    heads, optimizer = learner.begin_alignment()
                    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.align.epochs)
                    for _ in range(config.align.epochs):
                        learner.align_epoch(heads, optimizer, *learner.sample_epoch(task), task)
                        scheduler.step()
                        learner.accuracy(test, heads)
                scales = [1 + config.align.feature_scale * (task - k) for k in range(task + 1)]
        with phase("evaluation"):
            curve.append(learner.accuracy(test, heads, scales))
        elapsed = time.perf_counter() - began
        on_line(f"official way, task {task + 1} of {plan.num_tasks}: {curve[-1]:.2f}%, {elapsed:.0f} s")
    total = time.perf_counter() - began
    seconds["other"] = total - sum(seconds.values())
    return {
        "accuracy_curve": curve,
        "phase_seconds": seconds,
        "total_seconds": total,
        "train_images": config.optim.epochs * len(dataset.train.label_N),
        "test_images": len(dataset.test.label_N),
    }


def main() -> None:
    from slca_fast.benchmark.run import benchmark_config

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("method", choices=("slca", "slcapp"))
    parser.add_argument("folder", help="image folder with train/ and test/")
    parser.add_argument("--seed", type=int, default=1993)
    options = parser.parse_args()
    config = benchmark_config(options.method, options.folder, options.seed)
    print(json.dumps(run_official(config, on_line=print), indent=2))


if __name__ == "__main__":
    main()
