"""Data sets: indexing, decoding, augmentation and batches of images."""
