"""Suites of `python src/benchmark.py`, one module each with `run(cfg)`."""
