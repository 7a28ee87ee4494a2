"""Stage 2's inner loop without autograd: closed-form gradient, momentum SGD on one matrix, a CUDA graph on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from slca_fast.ops.task_normalized_cross_entropy import task_normalized_cross_entropy_gradient


class AlignmentSteps:
    """Weights ``[C, D]``, biases ``[C]`` and their momentum, trained one pass over sampled features at a time.

    Equals torch.optim.SGD (momentum, weight decay on all) on autograd's gradient of the task-normalized
    cross-entropy up to rounding. On CUDA the first pass is captured as a graph that later passes replay, with the
    learning rate in a device tensor.
    """

    def __init__(
        self,
        weight_CD: Tensor,
        bias_C: Tensor,
        task_sizes: Sequence[int],
        *,
        momentum: float,
        weight_decay: float,
        temperature: float,
        batch_size: int,
    ) -> None:
        self.weight_CD = weight_CD.detach().float().clone()
        self.bias_C = bias_C.detach().float().clone()
        self._weight_buffer, self._bias_buffer = torch.zeros_like(self.weight_CD), torch.zeros_like(self.bias_C)
        self._task_sizes, self._batch_size = tuple(task_sizes), batch_size
        self._momentum, self._weight_decay, self._temperature = momentum, weight_decay, temperature
        self._rate = torch.zeros((), device=weight_CD.device)
        self._loss_sum = torch.zeros((), device=weight_CD.device)
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None = None
        """The graph and the features and labels that it reads."""

    @torch.no_grad()
    def run_epoch(self, features_SD: Tensor, label_S: Tensor, lr: float) -> float:
        """One pass in batches, in the order given; the mean loss of its steps."""
        device = self.weight_CD.device
        features_SD, label_S = features_SD.to(device, torch.float32), label_S.to(device)
        self._rate.fill_(lr)
        self._loss_sum.zero_()
        with torch.autocast(device.type, enabled=False):
            if device.type == "cuda":
                self._replay(features_SD, label_S)
            else:
                self._pass(features_SD, label_S)
        return float(self._loss_sum) / -(-len(label_S) // self._batch_size)

    def _pass(self, features_SD: Tensor, label_S: Tensor) -> None:
        for x_BD, target_B in zip(features_SD.split(self._batch_size), label_S.split(self._batch_size)):
            logits_BC = torch.addmm(self.bias_C, x_BD, self.weight_CD.T)
            loss, gradient_BC = task_normalized_cross_entropy_gradient(
                logits_BC, target_B, self._task_sizes, self._temperature
            )
            self._weight_buffer.mul_(self._momentum).add_(self.weight_CD, alpha=self._weight_decay)
            self._weight_buffer.addmm_(gradient_BC.T, x_BD)
            self._bias_buffer.mul_(self._momentum).add_(self.bias_C, alpha=self._weight_decay)
            self._bias_buffer.add_(gradient_BC.sum(0))
            self.weight_CD.addcmul_(self._weight_buffer, self._rate, value=-1)
            self.bias_C.addcmul_(self._bias_buffer, self._rate, value=-1)
            self._loss_sum += loss

    def _replay(self, features_SD: Tensor, label_S: Tensor) -> None:
        if self._captured is None:
            given = features_SD.clone(), label_S.clone()
            self._captured = self._capture(*given), *given
        graph, given_SD, given_S = self._captured
        given_SD.copy_(features_SD)
        given_S.copy_(label_S)
        graph.replay()

    def _capture(self, features_SD: Tensor, label_S: Tensor) -> torch.cuda.CUDAGraph:
        state = (self.weight_CD, self.bias_C, self._weight_buffer, self._bias_buffer, self._loss_sum)
        before = [tensor.clone() for tensor in state]
        # Kernels compile and libraries allocate in a first pass, on a side stream as captures demand.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._pass(features_SD, label_S)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(state, before):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._pass(features_SD, label_S)
        return graph
