"""`python src/benchmark.py loader`: one suite of measurements, printed as tables and written beside their numbers."""

import sys
from importlib import import_module

from omegaconf import DictConfig

from covidseg.benchmark import CONTESTS
from covidseg.cli.app import application
from covidseg.config.choices import did_you_mean
from covidseg.system.errors import BadInput

SUITES = {  # modules with run(cfg)
    "networks": "covidseg.benchmark.networks",
    "statistics": "covidseg.benchmark.statistics",
    "versus": "covidseg.benchmark.versus.run",
    "gpu": "covidseg.benchmark.gpu.run",
    **dict.fromkeys((*CONTESTS, "all"), "covidseg.benchmark.suite"),
}


@application("benchmark")
def benchmark(cfg: DictConfig) -> None:
    if cfg.suite not in SUITES:
        remedy = f"{did_you_mean(cfg.suite, SUITES)}one of {', '.join(SUITES)}"
        raise BadInput(f"suite={cfg.suite}", "there is no such suite", remedy)
    import_module(SUITES[cfg.suite]).run(cfg)


def main() -> None:
    """A bare word in the first place is the suite: `benchmark.py networks` is `benchmark.py suite=networks`."""
    if sys.argv[1:] and sys.argv[1].isidentifier():
        sys.argv[1] = f"suite={sys.argv[1]}"
    benchmark()


if __name__ == "__main__":
    main()
