"""What a tired reader stumbles over is not written: style that no linter's rule covers."""

import ast
from pathlib import Path

import pytest

import covidseg

FILES = sorted(Path(covidseg.__file__).parent.rglob("*.py"))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@pytest.mark.parametrize("rule", ["nested conditional expression", "comprehension of three loops or two conditions"])
def test_no_expression_is_a_puzzle(rule):
    found = [
        f"{file.name}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (nests(node) if rule.startswith("nested") else crowds(node))
    ]
    assert found == []


def nests(node):
    return isinstance(node, ast.IfExp) and any(
        isinstance(part, ast.IfExp) for part in (node.body, node.orelse, node.test)
    )


def crowds(node):
    if not isinstance(node, COMPREHENSIONS):
        return False
    conditions = [condition for loop in node.generators for condition in loop.ifs]
    chained = any(isinstance(condition, ast.BoolOp) and len(condition.values) > 2 for condition in conditions)
    return len(node.generators) > 2 or len(conditions) > 1 or chained
