"""The prepared data set that a run was trained on, where it can still be found."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from covidseg.data.store import PreparedDataset
from covidseg.runs.folder import RunFolder
from covidseg.system.errors import CovidSegError


def training_data(
    run: Path | str, config: Mapping[str, Any], home: Path | str, dataset: PreparedDataset | None = None
) -> PreparedDataset | None:
    """The one that the run's manifest names; None where it is nowhere, or the run has no manifest.

    Looked for is `dataset`, then the folder that the run's `config` names, then the prepared data in `home`.
    """
    data = (RunFolder(run).manifest or {}).get("data")
    if not data or not {"name", "hash"} <= data.keys():
        return None
    name, digest = data["name"], data["hash"]
    prepared = config["data"].get("prepared")
    places = [*([dataset.folder] if dataset else []), *([Path(str(prepared)).expanduser()] if prepared else [])]
    places += [Path(str(place)) / "prepared" / f"{name}-{digest}" for place in (home, config["paths"]["data"])]
    for place in places:
        with suppress(CovidSegError, OSError):
            found = PreparedDataset.open(place)
            if (found.name, found.hash) == (name, digest):
                return found
    return None
