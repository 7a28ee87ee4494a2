"""What a step and a whole run should take, computed from a machine's rates and from what must be done. Nothing here is
measured but the two rates of each machine.

``python bench/gpu/predict.py`` prints the tables that docs/performance.md shows, marked as computed. "Before" is the
design as it was first audited, "after" the one that README.md's ladder measures. A measurement overrules any of it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """The rates that matter."""

    name: str
    matmul: float
    """bf16 operations a second of an 8,192-square product on random numbers."""
    copy: float
    """Bytes read plus bytes written a second of a copy on the device."""


MACHINES = (Machine("H100", 798e12, 3.0e12), Machine("H200", 788e12, 4.3e12))
SOURCE = (
    "Rates of one H100 SXM and one H200 SXM under torch 2.11 (an 8,192-square bf16 product, a copy of gigabytes; "
    "n = 1 each): 798 TFLOP/s and 3.0 TB/s, 788 TFLOP/s and 4.3 TB/s. Their data sheets say 989 TFLOP/s and 3.35 and "
    "4.8 TB/s."
)

# Assumed shares of those rates, of kernels as they are usually met.
PRODUCTS, ATTENTION, PASSES = 0.78, 0.40, 0.90


@dataclass(frozen=True)
class Vit:
    """ViT-B/16 at 224 px with the last block computed for the class token alone."""

    width: int = 768
    depth: int = 12
    patches: int = 196
    patch_numbers: int = 768
    rank: int = 4

    @property
    def tokens(self) -> int:
        return self.patches + 1

    @property
    def patch_flops(self) -> int:
        """Of the patch embedding, forward."""
        return 2 * self.patches * self.patch_numbers * self.width

    @property
    def linear_flops(self) -> int:
        """Of all linear layers of the blocks, forward: 12 D^2 products a token, in the last block 2 D^2 but for one."""
        return 2 * self.width**2 * (12 * self.tokens * (self.depth - 1) + 2 * self.tokens + 10)

    @property
    def attention_flops(self) -> int:
        """Scores and their product with the values, forward; one query in the last block."""
        return 4 * self.width * self.tokens * (self.tokens * (self.depth - 1) + 1)

    @property
    def lora_flops(self) -> int:
        """Of the four thin products on qkv, forward and backward, and of merging: the last is paid once a batch."""
        return 4 * self.rank * self.tokens * 4 * self.width * self.depth

    def forward_flops(self) -> int:
        """Of one image."""
        return self.patch_flops + self.linear_flops + self.attention_flops

    def training_flops(self, method: str) -> int:
        """Of one image, forward and backward: "slca" trains all weights, "slcapp" LoRA, norms and biases."""
        products = 3 * self.linear_flops if method == "slca" else 2 * self.linear_flops + self.lora_flops
        # The images need no gradient; attention's backward counts twice its forward.
        patches = (2 if method == "slca" else 1) * self.patch_flops
        return patches + products + 3 * self.attention_flops


VIT = Vit()
BATCH = 128
TASKS, EPOCHS, TRAIN_A_TASK, TEST_A_TASK = 10, 50, 2_400, 600
STEPS = TASKS * EPOCHS * -(-TRAIN_A_TASK // BATCH)
BLOCKS = VIT.depth - 1 + 0.3
"""Of passes over all tokens: the last block has its first norm, keys and values."""


@dataclass(frozen=True)
class Item:
    """One line of a table: the times of the two designs, in the table's unit."""

    what: str
    before: Callable[[Machine], float]
    after: Callable[[Machine], float]
    why: str


def _passes_ms(bytes_a_number: float) -> Callable[[Machine], float]:
    """Of so many bytes for every number of the token stream, in each block."""
    numbers = BATCH * VIT.tokens * VIT.width * BLOCKS
    return lambda machine: 1e3 * numbers * bytes_a_number / (PASSES * machine.copy)


def _stream_bytes(residual: int) -> int:
    """Bytes of the passes of a block between its products, forward and backward, for a residual of so many bytes.

    Forward, twice: branch read 2, residual read and written, norm written 2; GELU 8 read, 8 written. Backward, twice:
    gradient read 2, residual read, its gradient read and written, branch's gradient written 2; GELU 16 read, 8 written;
    sums for the biases of the output and of the MLP 12.
    """
    return 2 * (4 + 2 * residual) + 16 + 2 * (4 + 3 * residual) + 24 + 12


def _products_ms(method: str) -> Callable[[Machine], float]:
    flops = BATCH * (VIT.training_flops(method) - 3 * VIT.attention_flops)
    if method == "slcapp":
        flops -= BATCH * VIT.lora_flops
    return lambda machine: 1e3 * flops / (PRODUCTS * machine.matmul)


def _attention_ms(machine: Machine) -> float:
    # Flash attention's backward makes the scores again: 2.5 times its forward.
    return 1e3 * BATCH * 3.5 * VIT.attention_flops / (ATTENTION * machine.matmul)


def _thin_ms(machine: Machine) -> float:
    """The least for LoRA's thin products: g once, x twice."""
    return 1e3 * BATCH * VIT.tokens * VIT.width * 2 * (3 + 2) * VIT.depth / machine.copy


def _bytes_ms(num_bytes: float) -> Callable[[Machine], float]:
    return lambda machine: 1e3 * num_bytes / (PASSES * machine.copy)


def _same(value: float) -> Callable[[Machine], float]:
    return lambda machine: value


PARAMETERS = 86e6


def step(method: str, residual: int = 4) -> list[Item]:
    """A training step on 128 images in ms; ``residual``: bytes of a number of the residual stream after."""
    products, passes = _products_ms(method), _passes_ms(_stream_bytes(4))
    return [
        Item("matrix products", products, products, f"{PRODUCTS:.0%} of the matrix rate"),
        Item("attention", _attention_ms, _attention_ms, f"{ATTENTION:.0%} of the matrix rate, backward 2.5 forwards"),
        Item(
            "norms, GELU, residual sums",
            passes,
            _passes_ms(_stream_bytes(residual)),
            f"{_stream_bytes(4)} bytes a number and block with a residual in fp32, {_stream_bytes(2)} in bf16",
        ),
        *(
            [
                Item(
                    "LoRA's thin products",
                    lambda machine: 2.3 * _thin_ms(machine),
                    lambda machine: 1.15 * _thin_ms(machine),
                    "2.3 times the least traffic (197 blocks on 132 units, x A' again); 1.15 with x A' in qkv",
                )
            ]
            if method == "slcapp"
            else []
        ),
        Item(
            "weights cast to bf16, optimizer",
            _bytes_ms(PARAMETERS * (6 + (20 if method == "slca" else 1))),
            _bytes_ms(PARAMETERS * (6 + (20 if method == "slca" else 1))),
            "6 bytes a weight; 20 more for a trained one's SGD with momentum",
        ),
        Item(
            "augmentation of the batch",
            _same(0.55),
            _same(0.15),
            "24 loads a tap; tables of weights",
        ),
        Item("gaps between kernels", _same(0.15), _same(0.10), ""),
    ]


def total(items: list[Item], machine: Machine) -> tuple[float, float]:
    """(before, after)."""
    return sum(item.before(machine) for item in items), sum(item.after(machine) for item in items)


TRAIN_IMAGES = TASKS * TRAIN_A_TASK
TEST_IMAGES = TEST_A_TASK * TASKS * (TASKS + 1) // 2
"""Of all evaluations: the seen ones after every task."""


def forwards_s(images: int, machine: Machine) -> float:
    """The forward passes of so many images."""
    products = images * VIT.forward_flops() / (PRODUCTS * machine.matmul)
    passes = images * VIT.tokens * VIT.width * BLOCKS * 40 / (PASSES * machine.copy)
    return products + passes


def statistics_s(machine: Machine) -> float:
    """Of the run."""
    return forwards_s(TRAIN_IMAGES, machine) + 1


def evaluation_s(machine: Machine) -> float:
    """Of the run."""
    return forwards_s(TEST_IMAGES, machine)


ALIGNMENT, COMPILING = (5.2, 0.75), (65.0, 18.0)
"""Seconds before and after."""


def run(residual: int = 4) -> list[Item]:
    """A whole SLCA++ run of Split ImageNet-R's shape in seconds."""
    step_ms = step("slcapp", residual)
    return [
        Item(
            f"{STEPS:,} training steps",
            lambda machine: STEPS * total(step_ms, machine)[0] / 1e3,
            lambda machine: STEPS * total(step_ms, machine)[1] / 1e3,
            "the step above",
        ),
        Item("compiling, caches empty", *map(_same, COMPILING), "the whole model; one block that all share"),
        Item("headers of 30,000 files, model, LoRA's start", _same(10), _same(6), "eigh on the CPU; on the GPU"),
        Item("first epochs' decoding and copies", _same(5.5), _same(1.5), "a blocking copy an image; pinned, beside"),
        Item("checkpoints and their hashes", _same(5), _same(1), "in the way; in a thread"),
        Item("ends of 500 epochs", _same(4), _same(0.5), "8 ms of drained queue each; read an epoch late"),
        Item("alignment", *map(_same, ALIGNMENT), "1.2 warm and 4 to compile 7 kernels; captured, one kernel"),
        Item("statistics", statistics_s, statistics_s, "every training image forward once, and 1 s of factors"),
        Item("evaluation", evaluation_s, evaluation_s, "the seen test images forward after every task"),
        Item("log, report", _same(1), _same(1), ""),
    ]


def least_run_s(machine: Machine) -> float:
    """All arithmetic of the run at the full rate of the matrix units."""
    trained = TRAIN_IMAGES * EPOCHS * VIT.training_flops("slcapp")
    passed = (TRAIN_IMAGES + TEST_IMAGES) * VIT.forward_flops()
    return (trained + passed) / machine.matmul


def images_per_second(method: str, machine: Machine, residual: int = 4) -> tuple[float, float]:
    """Training images (before, after)."""
    before, after = total(step(method, residual), machine)
    return 1e3 * BATCH / before, 1e3 * BATCH / after


def run_s(machine: Machine, residual: int = 4) -> tuple[float, float]:
    """A whole run (before, after)."""
    return total(run(residual), machine)


def table(items: list[Item], unit: str, digits: int) -> str:
    """Markdown."""
    names = [f"{machine.name}, {when}" for machine in MACHINES for when in ("before", "after")]
    lines = [f"| {unit}, computed | {' | '.join(names)} | how |", "|---" * (len(names) + 2) + "|"]
    for item in items:
        cells = [f"{time(machine):.{digits}f}" for machine in MACHINES for time in (item.before, item.after)]
        lines.append(f"| {item.what} | {' | '.join(cells)} | {item.why} |")
    sums = [f"**{value:.{digits}f}**" for machine in MACHINES for value in total(items, machine)]
    return "\n".join([*lines, f"| **sum** | {' | '.join(sums)} | |"])


def least_ms(num_bytes: float, machine: Machine) -> float:
    """For so many bytes at the rate of a copy."""
    return 1e3 * num_bytes / machine.copy


def page() -> str:
    """The computed part of docs/performance.md."""
    rates = {
        machine.name: [images_per_second(method, machine) for method in ("slca", "slcapp")] for machine in MACHINES
    }
    told = "; ".join(
        f"{name}: full fine-tuning {full[0]:,.0f} and {full[1]:,.0f}, LoRA {lora[0]:,.0f} and {lora[1]:,.0f}"
        for name, (full, lora) in rates.items()
    )
    narrow = ", ".join(
        f"{machine.name} {total(step('slcapp', 2), machine)[1]:.1f} ms and {run_s(machine, 2)[1]:.0f} s"
        for machine in MACHINES
    )
    least = ", ".join(f"{machine.name} {least_run_s(machine):.0f} s" for machine in MACHINES)
    parts = [
        f"{SOURCE} The shares of these rates that kernels reach, and the times that do not follow from a rate, are "
        'estimates. "Before" is the design as it was first audited, "after" the one with the changes that the last '
        "column names; neither was measured.",
        f"A training step of SLCA++ LoRA, ViT-B/16, 128 images ({VIT.training_flops('slcapp') / 1e9:.1f} GFLOP an "
        f"image; full fine-tuning {VIT.training_flops('slca') / 1e9:.1f}), residual stream in fp32:",
        table(step("slcapp"), "ms", 2),
        f"Images a second, before and after: {told}.",
        f"A whole run of Split ImageNet-R's shape ({TASKS} tasks of {TRAIN_A_TASK:,} images, {EPOCHS} epochs):",
        table(run(), "s", 1),
        f"With the residual stream in bf16 the step and the run after take {narrow}. All of the run's arithmetic at "
        f"the full matrix rate: {least}.",
    ]
    filled = (part if part.startswith("|") else textwrap.fill(part, 118, break_on_hyphens=False) for part in parts)
    return "\n\n".join(filled)


if __name__ == "__main__":
    print(page())
