"""Suites of `python src/benchmark.py`: `networks`, and one module for each kind of contest with `contests(cfg)`."""

CONTESTS = ("loader", "augment", "step", "inference", "scoring", "prepare", "startup")
