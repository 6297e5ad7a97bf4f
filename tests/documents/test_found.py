"""No command of a document is overlooked: where they are found, in each kind of file."""

import json

import pytest

from documents import all_commands, commands_of

MARKDOWN = r"""Run `make demo`, `python src/train.py seed=1` or `predict.py input=x`; `seed=1` is none.

```bash
# a comment
$ python src/prepare.py \
    data=folder  # checks
make setup && source .venv/bin/activate
```

```python
import covidseg  # `make nothing`
```

```
python src/no.py
```
"""
YAML = """# python src/predict.py run=x
# See `python src/status.py name=x`; python src/nothing.py stands in the middle of a sentence.
seed: 0  # `make status`
"""
PYTHON = '''"""`python src/report.py table=t`: a report.

    python -m covidseg.cli.train seed=1
"""
print("python src/said.py")
'''
MAKEFILE = """help:  ## show this list
\tawk
hidden:
sweep-x: ready  ## all rows
"""
CELLS = [("markdown", "`make demo` first"), ("code", "!python src/status.py name=x\nx = 'make it'")]
NOTEBOOK = json.dumps({"cells": [{"cell_type": kind, "source": [text]} for kind, text in CELLS]})
FOUND = {
    "a.md": [
        (1, "make demo"),
        (1, "python src/train.py seed=1"),
        (1, "predict.py input=x"),
        (5, "python src/prepare.py data=folder  # checks"),
        (7, "make setup && source .venv/bin/activate"),
    ],
    "a.yaml": [(1, "python src/predict.py run=x"), (2, "python src/status.py name=x"), (3, "make status")],
    "a.py": [(1, "python src/report.py table=t"), (3, "python -m covidseg.cli.train seed=1")],
    "Makefile": [(1, "make help"), (4, "make sweep-x")],
    "a.ipynb": [(1, "make demo"), (2, "python src/status.py name=x")],
}
TEXTS = dict(zip(FOUND, (MARKDOWN, YAML, PYTHON, MAKEFILE, NOTEBOOK), strict=True))


@pytest.mark.parametrize("name", FOUND)
def test_commands_of_a_document(tmp_path, name):
    (tmp_path / name).write_text(TEXTS[name])
    assert [(command.line, command.text) for command in commands_of(tmp_path / name)] == FOUND[name]


def test_the_documents_of_the_project_show_commands():
    shown = {command.document for command in all_commands()}
    assert {"README.md", "docs/getting-started.md", "experiments/README.md", "Makefile"} <= shown
    assert {"conf/evaluate.yaml", "conf/sweep/ablation.yaml", "src/covidseg/cli/train.py"} <= shown
