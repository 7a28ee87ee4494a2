"""The benchmarks' counts of arithmetic and of bytes are the shapes' and the dtypes'."""

from __future__ import annotations

import pytest
import timm
import torch

from slca_fast.benchmark.flops import gflop_of
from slca_fast.model.lora import apply_lora
from slca_fast.ops.lora_linear import lora_linear
from slca_fast.ops.registry import Sample, all_ops

ROWS, IN, OUT, RANK = 6, 8, 10, 2


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize(("form", "thin_products"), [("merged", 4), ("unmerged", 7)])
def test_the_products_inside_lora_linear_are_counted(backend: str, form: str, thin_products: int) -> None:
    def normal(*shape: int, learns: bool = True) -> torch.Tensor:
        return torch.randn(*shape).requires_grad_(learns)

    x, weight, bias = normal(2, ROWS // 2, IN), normal(OUT, IN, learns=False), normal(OUT)
    lora_A, lora_B = normal(RANK, IN), normal(OUT, RANK)
    if backend == "native" and "native" not in all_ops()["lora_linear"].backends["cpu"]:
        pytest.skip("no native library")
    counted = gflop_of(lambda: lora_linear(x, weight, bias, lora_A, lora_B, 0.5, form, backend).sum().backward())
    wide = 2 * 2 * ROWS * IN * OUT
    # u = x A^T and (g B)^T x of 2 R I a row; g B and g^T u of 2 R O; unmerged y and dx cost three more.
    narrow = {4: 2 * IN + 2 * OUT, 7: 2 * IN + 2 * OUT + 2 * IN + OUT}[thin_products]
    merging = 2 * OUT * RANK * IN if form == "merged" else 0
    assert 1e9 * counted == pytest.approx(wide + 2 * ROWS * RANK * narrow + merging)


def test_a_forward_with_lora_costs_the_plain_forward_and_the_merging() -> None:
    plain, with_lora = (
        timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1, patch_size=8) for _ in range(2)
    )
    apply_lora(with_lora, rank=4)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        more = gflop_of(lambda: with_lora(images)) - gflop_of(lambda: plain(images))
    assert 1e9 * more == pytest.approx(2 * 4 * 192 * 3 * 192)


@pytest.mark.parametrize("accumulate", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_moments_bytes_are_those_of_the_dtypes(dtype: torch.dtype, accumulate: torch.dtype) -> None:
    features, labels, num_classes = torch.randn(6, 5).to(dtype), torch.arange(6) % 3, 3
    spec, kwargs = all_ops()["class_moments"], {"accumulate_dtype": accumulate}
    results = spec.reference(features, labels, num_classes, accumulate)
    expected = features.nbytes + labels.nbytes + sum(tensor.nbytes for tensor in results)
    assert spec.bytes_moved is not None
    assert spec.bytes_moved(Sample("", (features, labels, num_classes), kwargs)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_op_counts_at_least_its_inputs_and_outputs_in_their_dtypes(dtype: torch.dtype) -> None:
    for name, spec in all_ops().items():
        if spec.bytes_moved is None or dtype not in spec.dtypes or name == "augment":
            continue
        for sample in spec.samples(torch.device("cpu"), dtype):
            if not all(tensor.numel() for tensor in sample.args if isinstance(tensor, torch.Tensor)):
                continue
            results = spec.reference(*sample.args, **sample.kwargs)
            written = [results] if isinstance(results, torch.Tensor) else list(results)
            least = max(sample.args[0].nbytes, *(tensor.nbytes for tensor in written if tensor.dtype.is_floating_point))
            assert spec.bytes_moved(sample) >= least, (name, sample.label)


@pytest.mark.parametrize("name", sorted(all_ops()))
def test_no_measured_input_is_constant(name: str) -> None:
    """Zeros hide unwritten outputs, and can be faster than real data."""
    spec = all_ops()[name]
    for sample in spec.benchmark_samples(torch.device("cpu"), torch.float32):
        for tensor in sample.args:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel() > 1000:
                assert tensor.detach().flatten()[:: max(1, tensor.numel() // 1000)].unique().numel() > 100, sample.label
                assert 0 not in tensor.stride(), f"{sample.label}: one matrix, seen as many"
