"""Scans and masks as they lie on disk."""
