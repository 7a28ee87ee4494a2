"""Per-class count, mean and scatter of features."""
