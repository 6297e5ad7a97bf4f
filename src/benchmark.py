"""Size, speed and memory beside the peers: `python src/benchmark.py networks`, `--help` lists the options."""

from covidseg.cli.benchmark import main

if __name__ == "__main__":
    main()
