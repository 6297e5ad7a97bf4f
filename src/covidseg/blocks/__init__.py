"""Interchangeable blocks: each class takes `channels` first and keeps the shape (B, C, D, H, W)."""
