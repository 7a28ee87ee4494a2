"""Crop, antialiased bicubic resize, flip, brightness and normalisation of a ragged batch of images."""
