"""The vision transformer, its heads and LoRA, and how they execute."""
