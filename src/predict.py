"""python src/predict.py run=runs/... input=scan.nii.gz output=masks: masks and figures for scans of your own."""

from covidseg.cli.predict import main

if __name__ == "__main__":
    main()
