"""The GPU part of docs/performance.md: what is computed is what is counted, what is measured comes from the records."""

from __future__ import annotations

import predict
import pytest
import table
import timm
import torch
from records import EXTRAPOLATED, Record, Row
from whole_run import Seen, extrapolated

from slca_fast.benchmark.flops import gflop_of
from slca_fast.model import class_token
from slca_fast.model.lora import apply_lora


def test_the_page_is_current() -> None:
    assert table.PAGE.read_text() == table.written(table.PAGE.read_text(), table.load()), "run: bench/gpu/table.py"


SMALL = predict.Vit(width=48, depth=3, patches=16, patch_numbers=3 * 8 * 8, rank=4)


@pytest.mark.parametrize("method", ["slca", "slcapp"])
def test_the_computed_arithmetic_is_what_runs(method: str) -> None:
    """Of a small model: torch counts the same products one by one."""
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 0}
    vit = timm.create_model("vit_tiny_patch16_224", **kwargs)
    if method == "slcapp":
        apply_lora(vit, rank=4)
        for name, parameter in vit.named_parameters():
            parameter.requires_grad_(any(part in name for part in ("norm", "bias", "cls_token", "lora")))
    # Fused attention counts nothing on the CPU.
    class_token.set_attention(vit, "bmm")
    num_images = 64
    images = torch.randn(num_images, 3, 32, 32)

    def step() -> None:
        class_token.class_token_features(vit, images, class_token.first_token).sum().backward()

    counted = gflop_of(step) * 1e9 / num_images
    assert counted == pytest.approx(SMALL.training_flops(method), rel=0.01)
    with torch.no_grad():
        forward = gflop_of(lambda: class_token.class_token_features(vit, images, class_token.first_token))
    assert forward * 1e9 / num_images == pytest.approx(SMALL.forward_flops(), rel=0.01)


def test_the_published_counts_of_vit_b() -> None:
    """GFLOP an image, counted by hand before: 97.9, 66.5, 32.7."""
    counts = [predict.VIT.training_flops("slca"), predict.VIT.training_flops("slcapp"), predict.VIT.forward_flops()]
    assert [count / 1e9 for count in counts] == pytest.approx([97.9, 66.5, 32.7], abs=0.15)


def test_a_run_is_its_parts_and_never_below_the_arithmetic() -> None:
    for machine in predict.MACHINES:
        before, after = predict.run_s(machine)
        assert predict.least_run_s(machine) < after < before
        assert before == pytest.approx(sum(item.before(machine) for item in predict.run()))
        rate = predict.images_per_second("slcapp", machine)[0]
        assert predict.total(predict.step("slcapp"), machine)[0] * rate == pytest.approx(128e3)


# Extrapolation


def seen(epochs: list[list[float]], rest: list[float]) -> Seen:
    found = Seen(began=100.0, first_epoch_began=110.0)
    found.epochs, found.rest = epochs, rest
    return found


def test_missing_epochs_are_added_to_every_task() -> None:
    whole = extrapolated(seen([[5.0, 2.0], [4.0, 2.0]], [1.0, 1.5]), num_tasks=2, num_epochs=10)
    assert whole is not None
    assert whole.seconds == pytest.approx(10 + (5 + 2 + 4 + 2) + 16 * 2.0 + 2.5)
    assert "16 later epochs x 2.000 s" in whole.formula and "0 first epochs" in whole.formula


def test_missing_tasks_are_added_with_the_classes_that_they_have_more() -> None:
    whole = extrapolated(seen([[5.0, 2.0, 2.0], [4.0, 2.2]], [1.0]), num_tasks=4, num_epochs=3)
    assert whole is not None
    # 2 first epochs and 5 later ones are missing, and the rest of tasks 2, 3 and 4.
    assert whole.seconds == pytest.approx(10 + 15.2 + 2 * 4.5 + 5 * 2.0 + 1.0 + 1.0 * (2 + 3 + 4))


def test_too_little_gives_no_number() -> None:
    assert extrapolated(seen([[5.0]], []), 2, 2) is None
    assert extrapolated(seen([], []), 2, 2) is None


# The table


def results(*rows: Row) -> table.Results:
    return table.Results("a machine", (Record("step", False, "2026-01-01", 1.0, 2.0, "", rows=list(rows)),))


def cells(of: table.Results) -> dict[str, str]:
    lines = table.part([of]).splitlines()
    return {line.split(" | ")[0].lstrip("| "): line.split(" | ")[-1].rstrip(" |") for line in lines if " | " in line}


def test_every_cell_says_not_measured_without_records() -> None:
    lines = [line for line in table.part([]).partition("### Computed")[0].splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(table.TARGETS)
    assert all(line.endswith("| not measured |") for line in lines[1:])


def test_numbers_come_from_the_records() -> None:
    ratio = {"median": 12.34, "least": 12.0, "greatest": 13.0, "n": 5}
    found = cells(
        results(
            Row(
                "training step", "slcapp, batch 128", "bf16, compiled", value=6100.4, unit="images/s", n=12,
                ratios={"official way, fp32, eager": ratio}, fraction_of_peak=0.512, peak="matmul bf16",
                peak_memory_bytes=9_100_000_000,
            ),
            Row("whole run", "slcapp, 200", "bf16, compiled", EXTRAPOLATED, 250.0, "s", reason="a formula"),
            Row("whole run", "slcapp, 200", "official way, fp32, eager", EXTRAPOLATED, 5000.0, "s", reason="one"),
            Row("op augment", "128 x 400 px to 224, bf16", "triton", value=0.64, unit="ms"),
            Row("two runs of one seed", "slcapp, x", "compared", value=0.0),
            Row("two runs of one seed", "slcapp, x", "run 1", value=5.0),
            Row("GPU tests", "pytest -m gpu", value=150.0, reason="2 failed", details={"collected": 152}),
            Row("alignment, whole run", "x", "in the run", value=0.251),
        )
    )  # fmt: skip
    assert found["SLCA++ LoRA, bf16, batch 128"] == (
        "6,100 images/s, 51% of the matrix rate, 12.3x eager fp32, 9.1 GB (n = 12)"
    )
    assert found["full fine-tuning, bf16, batch 128"] == "not measured"
    assert found["whole Split ImageNet-R SLCA++ run"] == "250 s (extrapolated in part)"
    assert found["the same against eager fp32"].startswith("at least 20.0x")
    assert found["augment, 400 px to 224"] == "bf16 triton: 200,000 images/s"
    assert found["two runs of one seed"] == "slcapp, x: not equal"
    assert found["tests that need a GPU"] == "150 of 152 (2 failed)"
    assert found["alignment of that run"] == "0.25 s in the run"


def test_a_dry_run_is_no_measurement(tmp_path) -> None:
    from records import write

    (tmp_path / "laptop").mkdir()
    write(Record("ops", True, "2026-01-01", 1.0, 2.0, ""), tmp_path / "laptop" / "ops.json")
    with pytest.raises(AssertionError, match="dry run"):
        table.load(tmp_path)
