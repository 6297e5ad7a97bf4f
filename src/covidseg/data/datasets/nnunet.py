"""nnU-Net's raw layout (Dataset003_Name): `imagesTr/<case>_0000.*`, `labelsTr/<case>.*`, `dataset.json`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidseg.data.datasets import ASSUME, Listing, Mask, Source, assumed, case_id, entries, existing_folder, label_map
from covidseg.data.store import LABELS
from covidseg.system.errors import BadInput
from covidseg.system.files import read_json

CHANNEL = "_0000"
_CHANNEL = re.compile(r"_\d{4}$")
NAMES = {value: name for name, value in LABELS.items()}


class NNUNet:
    """One data set folder; cases of `imagesTs` that have a mask in `labelsTs` are declared as the test set."""

    def __init__(self, root: str | Path, labels: Mapping[int, str] | None, assume: Mapping[str, Any] | None = None):
        """`labels`: what the values mean; None reads the names "lung" and "lesion" or "infection" of dataset.json.

        `assume`: what the user vouches for where the files do not say it (`gate.assume.Assume`).
        """
        self.root, self.labels, self.assume = root, labels, assumed(assume)

    def listing(self) -> Listing:
        """Training cases, and test cases where their labels are there."""
        root = existing_folder(self.root, "data.root", "imagesTr").parent
        labels = label_map(self.labels if self.labels is not None else self._declared(root), "data.source.labels")
        known = ", ".join(f"{value}: {NAMES[label]}" for value, label in labels.items())
        found = Listing()
        for suffix, declared in (("Tr", ""), ("Ts", "test")):
            images, _ = entries(root / f"images{suffix}")
            masks, _ = entries(root / f"labels{suffix}")
            _require_one_channel(f"images{suffix}", images)
            cases = {name.removesuffix(CHANNEL): paths for name, paths in images.items()}
            for name in sorted(cases.keys() | masks.keys()):
                scans, own = cases.get(name, []), masks.get(name, [])
                if declared and not own:
                    continue  # a challenge's test set, without truth
                if len(scans) != 1 or len(own) != 1:
                    found.refuse(name, f"has {len(scans)} scans and {len(own)} masks", "one of each is needed")
                else:
                    mask = Mask(own[0], labels, f"'data.source.labels={{{known}, VALUE: lesion}}'")
                    found.cases.append(
                        Source(case_id(name), scans[0], (mask,), declared=declared, assume=self.assume, option=ASSUME)
                    )
        return found

    @staticmethod
    def _declared(root: Path) -> dict[int, str]:
        """{value: "lung" | "lesion"} from dataset.json, whose newer form is {name: value} and older {value: name}."""
        try:
            pairs = read_json(root / "dataset.json")["labels"].items()
        except (OSError, ValueError, KeyError, AttributeError) as error:
            wrong = f"has no readable list of labels ({type(error).__name__})"
            raise BadInput("dataset.json", wrong, "give data.source.labels={1: lung, 2: lesion}") from error
        named = {}
        for one, other in pairs:
            name, value = (str(other), one) if str(one).isdigit() else (str(one), other)
            if isinstance(value, list):
                raise BadInput(
                    "dataset.json", f"label {name} is a region", "give data.source.labels={1: lung, 2: lesion}"
                )
            if name.lower() == "background":
                continue
            lung = "lung" in name.lower()
            lesion = any(word in name.lower() for word in ("lesion", "infection", "covid"))
            if lung == lesion:
                wrong = f"label {name!r} is not plainly lung or lesion"
                raise BadInput("dataset.json", wrong, f"say what it is: data.source.labels={{{value}: lesion}}")
            named[int(value)] = "lung" if lung else "lesion"
        return named


def _require_one_channel(folder: str, images: Mapping[str, list[Path]]) -> None:
    """nnU-Net's images end in the number of their channel; a CT has the one, 0000."""
    channels = {name: name[-len(CHANNEL) :] for name in images if _CHANNEL.search(name)}
    if bare := sorted(images.keys() - channels.keys()):
        file = images[bare[0]][0].name
        renamed = file.replace(bare[0], f"{bare[0]}{CHANNEL}", 1)
        wrong = f"{len(bare)} of {len(images)} images do not end in their channel's number: {bare[0]}"
        remedy = f"rename each, as {file} to {renamed}; the labels stay as they are"
        raise BadInput(folder, wrong, remedy)
    if more := sorted(set(channels.values()) - {CHANNEL}):
        wrong = f"has the channels {', '.join(sorted({CHANNEL, *more}))} and only one, a CT, is meant"
        raise BadInput(folder, wrong, f"keep the files that end in {CHANNEL}")
