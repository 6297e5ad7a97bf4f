"""One run: its parts, its loop, what happens between two steps."""
