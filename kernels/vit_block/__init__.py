"""A vision transformer's block on the CPU: the passes between its matrix products, and the fused block with products.

No op of its own in the registry: timm's modules are the reference, and they run wherever these kernels do not.
"""
