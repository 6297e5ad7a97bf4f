"""Tables, statistics and figures of a table's runs: `python src/report.py table=table2`."""

from covidseg.cli.report import main

if __name__ == "__main__":
    main()
