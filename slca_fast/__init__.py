"""Continual learning with pre-trained vision transformers."""
