"""Commands in this process: seconds of imports less for each test than a process of its own."""

import importlib
import sys

import pytest


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """`in_process("evaluate", "run=x", ...)`, in `tmp_path` -> (exit status, stdout, stderr)."""

    def run(name, *arguments):
        main = importlib.import_module(f"covidseg.cli.{name}").main
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.chdir(tmp_path)
        try:
            main()
            status = 0
        except SystemExit as leave:
            status = leave.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
