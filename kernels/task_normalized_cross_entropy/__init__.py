"""Task-normalized cross-entropy: reference equation, Triton kernel, native CPU kernel."""
