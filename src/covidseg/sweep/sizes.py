"""The sizes of networks, from a process that imports torch and ends.

stdin: a JSON list of [model config, patch size]; last line of stdout: a list of [parameters, multiply-adds], or null
where the network cannot be made.
"""

import json
import sys

from covidseg.nets.cost import network_cost


def main() -> None:
    sizes: list[list[int] | None] = []
    for model, size_zyx in json.load(sys.stdin):
        try:
            sizes.append(list(network_cost(model, size_zyx)))
        except Exception:  # an impossible network is the business of its own run, which says what is wrong with it
            sizes.append(None)
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
