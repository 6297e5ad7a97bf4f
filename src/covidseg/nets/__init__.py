"""The compared networks, one file each: (B, in_channels, D, H, W) -> logits (B, out_channels, D, H, W)."""
