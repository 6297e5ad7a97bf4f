"""Train one run: `python src/train.py --help` lists the options."""

from covidseg.cli.train import main

if __name__ == "__main__":
    main()
