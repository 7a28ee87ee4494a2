"""What a long run keeps of its process."""

from __future__ import annotations

import subprocess
import sys

SHAPES = """
import torch
from slca_fast.machine.process import keep_few_products

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def multiply(first: int, end: int) -> int:
    for rows in range(first, end):
        torch.randn(16, 32) @ torch.randn(rows, 32).T
    return resident()

keep_few_products()
torch.set_float32_matmul_precision("medium")
before = multiply(1, 400)
print(multiply(400, 700) - before)
"""


def test_products_of_ever_new_shapes_do_not_fill_the_memory() -> None:
    grown = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True).stdout
    # Kept, they take 200 MB where oneDNN compiles for AVX-512.
    assert int(grown) < 100e6
