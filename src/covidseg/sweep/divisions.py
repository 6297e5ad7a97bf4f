"""How data sets are divided, from a process that may import what it needs, and ends. No voxel is read.

stdin: a JSON list of [data config, [structures of a task, ...]]; last line of stdout: for each of them `folds`, with
one entry for each task: the folds that its run has to be made of, null where there is a test set to be scored on; or
`error`, the parts of what is wrong with the data set, and whether the `environment` is.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from covidseg.data.prepare.run import division
from covidseg.system.errors import CovidSegError, EnvironmentFault


def main() -> None:
    print(json.dumps([_reply(data, tasks) for data, tasks in json.load(sys.stdin)]))


def _reply(data: Mapping[str, Any], tasks: Sequence[Sequence[str]]) -> dict[str, Any]:
    try:
        found = division(data)
        return {"folds": [found.needed(structures) if found else None for structures in tasks]}
    except CovidSegError as error:
        return {"error": [error.what, error.wrong, error.remedy], "environment": isinstance(error, EnvironmentFault)}


if __name__ == "__main__":
    main()
