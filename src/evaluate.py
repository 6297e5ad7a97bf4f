"""python src/evaluate.py run=runs/...: metrics of a run, case by case, on any prepared data set."""

from covidseg.cli.evaluate import main

if __name__ == "__main__":
    main()
