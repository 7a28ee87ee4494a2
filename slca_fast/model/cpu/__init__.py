"""Transformer blocks on the CPU by the native library."""
