"""Every notebook runs from top to bottom and is stored without what it printed."""

import nbformat
import pytest
from nbclient import NotebookClient

from covidseg.config.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


TRAINING = {"sweep", "new_scan"}  # those that train first where there is no run


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in TRAINING else (), id=path.stem) for path in NOTEBOOKS],
)
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert shown, "it has pictures"
