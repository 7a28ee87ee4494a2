"""A linear layer with a low-rank update of a frozen weight (SLCA++ section 4.1, LoRA)."""
