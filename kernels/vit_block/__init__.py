"""What a transformer block does between its matrix products, as native CPU kernels."""
