"""Kernels behind slca_fast.ops: reference equations, Triton kernels and the native CPU library.

Installed as ``slca_fast.kernels``; imports torch and triton only.
"""
