"""What a transformer block does between its matrix products, as native CPU kernels.

No op of its own in the registry: timm's modules are the reference, and they run wherever these kernels do not.
"""
