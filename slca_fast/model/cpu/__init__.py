"""Stacks of transformer blocks on the CPU by the native library, of fused or of composed blocks."""
