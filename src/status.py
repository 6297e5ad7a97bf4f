"""What each run is doing: `python src/status.py [name=table2] [watch=5]`."""

from covidseg.cli.status import main

if __name__ == "__main__":
    main()
