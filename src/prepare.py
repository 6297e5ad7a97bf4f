"""python src/prepare.py data=folder data.root=/path/to/scans: check scans and masks and prepare them for training."""

from covidseg.cli.prepare import main

if __name__ == "__main__":
    main()
