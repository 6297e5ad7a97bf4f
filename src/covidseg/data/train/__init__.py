"""Patches for training, whole cases for validation."""
