"""Benchmarks that ship with the package: what `slca-fast bench` runs."""
