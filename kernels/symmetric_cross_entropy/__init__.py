"""Symmetric cross-entropy: reference equation, Triton kernel, native CPU kernel."""
