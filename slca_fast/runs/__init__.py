"""A run on disk: folder, checkpoints, state, summary; and a run read back."""
