"""Kernels compiled for a GPU that is not here."""

from __future__ import annotations


def compile_for_hopper(
    kernel, pointers: dict[str, str], scalars: dict[str, str], constants: dict[str, object], num_warps: int
):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = pointers | scalars | {name: "constexpr" for name in constants}
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
