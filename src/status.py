"""What each run is doing: `python src/status.py`, and `name=table2 watch=5` for one table, again and again."""

from covidseg.cli.status import main

if __name__ == "__main__":
    main()
