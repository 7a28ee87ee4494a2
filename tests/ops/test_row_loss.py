"""What the losses over rows share: one schema for every implementation, late ops, kernels that the compiler sees."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import subprocess
import sys

import pytest
import torch

from slca_fast.kernels import triton_runtime
from slca_fast.kernels.row_loss.rows import Rows
from slca_fast.ops import symmetric_cross_entropy, task_normalized_cross_entropy
from slca_fast.ops.row_loss import RowLoss

MODULES = (symmetric_cross_entropy, task_normalized_cross_entropy)
over_losses = pytest.mark.parametrize("loss", [pytest.param(m._LOSS, id=m._LOSS.name) for m in MODULES])
needs_compiled_triton = pytest.mark.skipif(triton_runtime.interpreted(), reason="the interpreter does not compile")


@over_losses
def test_every_implementation_takes_the_parameters_that_the_ops_have(loss):
    for implementation in (loss.reference, loss.native, loss.load_triton()):
        assert list(inspect.signature(implementation).parameters) == ["rows", *loss.parameters], implementation


@over_losses
def test_a_loss_is_a_constant(loss):
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.name = "another"


def test_ops_are_registered_by_their_first_call_and_not_before():
    script = """
import sys, torch
from slca_fast.ops.symmetric_cross_entropy import symmetric_cross_entropy
assert not hasattr(torch.ops.slca_fast, "symmetric_cross_entropy_reference")
symmetric_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), backend="reference")
print(torch.ops.slca_fast.symmetric_cross_entropy_reference.default._schema)
assert not hasattr(torch.ops.slca_fast, "symmetric_cross_entropy_native")
assert "slca_fast.kernels.symmetric_cross_entropy.triton_kernel" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (
        "slca_fast::symmetric_cross_entropy_reference(Tensor logits_BC, Tensor target_B, Tensor scale_B, "
        "float ce_weight, float rce_weight, bool with_gradient) -> (Tensor, Tensor)"
    )


@needs_compiled_triton
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module._LOSS.name)
def test_the_compiler_sees_the_triton_kernels(module, monkeypatch):
    """Traced with stand-ins for CUDA tensors, so without a GPU: the op dissolves into kernel launches."""
    from torch._functorch.aot_autograd import aot_function
    from torch._subclasses import FakeTensorMode

    # Without a GPU torch cannot tell which arguments the kernel writes, and warns at length.
    monkeypatch.setattr(logging.getLogger("torch._higher_order_ops.triton_kernel_wrap"), "disabled", True)
    function = getattr(module, module._LOSS.name)
    more = ([2, 3],) if module is task_normalized_cross_entropy else ()
    traced = []

    def keep(graph, _):
        traced.append([str(node.target) for node in graph.graph.nodes])
        return graph

    with FakeTensorMode():
        logits_BC, target_B = torch.empty(4, 5, device="cuda"), torch.empty(4, dtype=torch.long, device="cuda")
        aot_function(lambda z, y: function(z, y, *more, backend="triton"), keep)(logits_BC, target_B)
    assert any("triton_kernel_wrapper" in target for target in traced[0])
    assert not any("slca_fast" in target for target in traced[0])


def test_what_the_native_library_complains_of_is_raised_on_when_every_label_is_in_range():
    from slca_fast.kernels.native import NativeError

    def out_of_memory(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        raise NativeError("slca_no_such_loss", 1)

    loss = RowLoss("no_such_loss", {}, out_of_memory, out_of_memory, lambda: out_of_memory)
    run = loss._implementation("native")
    with pytest.raises(NativeError, match="status 1"):
        run(torch.zeros(2, 3), torch.tensor([0, 2]), torch.ones(2), False)
    with pytest.raises(ValueError, match="no_such_loss: label 3 of row 1"):
        run(torch.zeros(2, 3), torch.tensor([0, 3]), torch.ones(2), False)


def test_dense_rows_keep_their_values_and_memory_fits_them():
    rows = Rows(torch.randn(3, 4).T, torch.arange(8)[::2], torch.ones(1).expand(4), with_gradient=True)
    dense = rows.dense()
    assert dense.logits_BC.stride(1) == 1 and dense.target_B.is_contiguous() and dense.scale_B.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(rows[:3], dense[:3]))
    for wanted in (True, False):
        loss_B, gradient_BC = rows._replace(with_gradient=wanted).memory()
        assert loss_B.shape == (4,) and loss_B.is_contiguous()
        assert gradient_BC.shape == ((4, 3) if wanted else (0,)) and gradient_BC.is_contiguous()
