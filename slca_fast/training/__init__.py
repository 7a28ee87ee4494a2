"""Stage 1: fine-tuning on one task, and features."""
