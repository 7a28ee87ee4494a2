"""Stage 1: fine-tuning backbone and the newest head on one task's images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from slca_fast.config import Config
from slca_fast.data.batch import Batch
from slca_fast.data.stream import ImageSet
from slca_fast.errors import UserError
from slca_fast.machine.ranks import ALONE, Ranks, Votes
from slca_fast.model.backbone import Backbone, autocast
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
from slca_fast.seeds import step_key
from slca_fast.training.optim import learning_rate, make_optimizer, restore_optimizer, slow_learner_param_groups


class NonFiniteLoss(UserError):
    """The loss of a batch became NaN or infinite; names the batch's files."""


class Stopped(Exception):
    """A stop was asked for between two batches; training can go on from ``epoch`` and ``step``."""

    def __init__(self, epoch: int, step: int, loss_sum: float) -> None:
        super().__init__(f"stopped before step {step} of epoch {epoch}")
        self.epoch, self.step, self.loss_sum = epoch, step, loss_sum


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of stage 1 measured."""

    task: int
    epoch: int
    """0-based."""
    num_epochs: int
    loss: float
    """Mean over the epoch's images."""
    lr: dict[str, float]
    """Learning rate of every parameter group."""
    num_images: int
    """Images trained on by this call (fewer than the epoch's after a resume in its middle)."""
    seconds: float
    data_seconds: float
    """Part of ``seconds`` spent waiting for images."""
    loss_sum: float
    """Sum over the epoch's images."""


@dataclass
class Stage1:
    """Fine-tuning on one task, epoch by epoch, so that a checkpoint can fall between any two batches."""

    backbone: Backbone
    head: nn.Linear
    images: ImageSet
    config: Config
    task: int
    first_label: int
    """Label of the task's first class: targets are label - first_label."""
    precision: str
    ranks: Ranks = ALONE
    optimizer_state: Mapping[str, Tensor] | None = None
    """What ``optimizer_tensors`` gave when a checkpoint was made within this task."""
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        optim = self.config.optim
        groups = slow_learner_param_groups(
            self.backbone,
            self.head.parameters(),
            lr=optim.lr,
            backbone_lr_scale=optim.backbone_lr_scale,
            lora_lr_scale=optim.lora_lr_scale_first if self.task == 0 else optim.backbone_lr_scale,
            weight_decay=optim.weight_decay,
        )
        for group in groups:
            group["base_lr"] = group["lr"]
        self.device = self.head.weight.device
        self.optimizer = make_optimizer(optim, groups, self.device)
        if self.optimizer_state is not None:
            restore_optimizer(self.optimizer, self.optimizer_state)

    def run_epoch(
        self,
        epoch: int,
        start_step: int = 0,
        loss_sum: float = 0.0,
        on_step: Callable[[int], None] = lambda num_images: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> EpochReport:
        """One pass over the task's images in the order that (seed, task, epoch) fixes.

        ``start_step`` and ``loss_sum`` continue an epoch that a stop interrupted. ``on_step`` is told the number of
        images of every finished batch. Raises Stopped when ``should_stop`` says so, NonFiniteLoss for a bad loss.
        """
        start, waited = time.perf_counter(), 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config.optim, group["base_lr"], epoch)
        self.backbone.train()
        votes = Votes()
        losses: list[Tensor] = []
        seed = self.config.seed
        todo = self.images.epoch_batches(seed, self.task, epoch)[start_step:]
        batches = self.images.train_batches(seed, self.task, epoch, [self.ranks.slice_of(ids) for ids in todo])
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            while True:
                stop = should_stop()
                finished = len(losses) == len(todo)
                # Several ranks stop after the same step: the wish travels with the gradients.
                if (stop and self.ranks.alone) or votes.passed(last=finished):
                    raise Stopped(epoch, start_step + len(losses), self._finite_sum(losses, todo, loss_sum))
                if finished:
                    break
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                # Dropout, when a user asks for it, is a function of the step: nothing of it needs saving.
                torch.manual_seed(step_key(seed, self.task, epoch, start_step + len(losses), self.ranks.rank))
                num_images = len(todo[len(losses)])
                if self.ranks.alone:
                    losses.append(torch.zeros((), device=self.device) if batch is None else self._step(batch))
                else:
                    sums = self._shared_step(batch, num_images, stop)
                    losses.append(sums[0])
                    votes.cast(sums[2])
                on_step(num_images)
        total = self._finite_sum(losses, todo, loss_sum)
        return EpochReport(
            self.task,
            epoch,
            self.config.optim.epochs,
            total / self.images.num_images,
            {group["name"]: group["lr"] for group in self.optimizer.param_groups},
            sum(len(ids) for ids in todo),
            time.perf_counter() - start,
            waited,
            total,
        )

    def _step(self, batch: Batch) -> Tensor:
        """One optimizer step; returns the sum of the images' losses."""
        loss_sum = self._backward(batch.images, batch.label_B, len(batch.label_B))
        self.optimizer.step()
        return loss_sum

    def _backward(self, images: Tensor, label_B: Tensor, num_planned: int) -> Tensor:
        """Leaves the gradients of (sum of the images' losses) / ``num_planned``; returns that sum, float32."""
        self.optimizer.zero_grad(set_to_none=True)
        size = self.backbone.part_size(len(label_B))
        sums = []
        with self.backbone.unchanged():
            for part, labels in zip(images.split(size), label_B.split(size)):
                loss = self._loss(part, labels)
                (loss * (len(labels) / num_planned)).backward()
                sums.append(loss.detach().float() * len(labels))
        return torch.stack(sums).sum()

    def _shared_step(self, batch: Batch | None, num_planned: int, stop: bool) -> Tensor:
        """One optimizer step on a batch of ``num_planned`` images that is spread over the ranks.

        ``batch`` is this rank's part, None when it is empty. Returns, over all ranks, the sum of the losses, the number
        of images and the number of wishes to stop.
        """
        num_rows = 0 if batch is None else len(batch.label_B)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if batch is None:
            # A black image of weight 0: this rank then has gradients for the same parameters as the others.
            size = self.images.config.image_size
            loss_sum = 0 * self._backward(torch.zeros(1, 3, size, size), torch.tensor([self.first_label]), num_planned)
            torch._foreach_zero_([p.grad for p in parameters if p.grad is not None])
        else:
            loss_sum = self._backward(batch.images, batch.label_B, num_planned)
        counts = torch.tensor([num_rows, float(stop)], device=self.device)
        sums = self.ranks.sum_gradients(parameters, torch.cat([loss_sum[None], counts]))
        if self.images.config.policy == "quarantine":
            # Files left out at run time make the batch smaller than planned, or leave nothing of it.
            if sums[1] == 0:
                return sums
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], num_planned / sums[1])
        self.optimizer.step()
        return sums

    def _loss(self, images: Tensor, label_B: Tensor) -> Tensor:
        """Mean loss of images of this task."""
        target_B = (label_B - self.first_label).to(self.device, non_blocking=True)
        with autocast(self.precision, self.device):
            with torch.set_grad_enabled(self.config.model.trainable != "head"):
                features = self.backbone(images.to(self.device, non_blocking=True))
        # The head and the loss are too small to gain from bf16 and lose digits by it.
        logits = self.head(features.float())
        return symmetric_cross_entropy(logits, target_B, self.config.loss.ce_weight, self.config.loss.rce_weight)

    def _finite_sum(self, losses: list[Tensor], batches: list[np.ndarray], loss_sum: float) -> float:
        """``loss_sum`` plus the losses, added in order with one device sync; names the files of the first bad batch."""
        for step, value in enumerate(torch.stack(losses).double().cpu().tolist() if losses else ()):
            if not np.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss became {value} in task {self.task + 1}; the images of that batch: "
                    f"{self.images.files(batches[step])}; lower --optim.lr or look at these images"
                )
            loss_sum += value
        return loss_sum
