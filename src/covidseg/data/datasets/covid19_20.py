"""COVID-19-20 challenge, version 2: 199 training scans with lesions, no lungs (Roth et al. 2022)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from covidseg.data.datasets import Listing, Mask, Source, entries, existing_folder, label_map, scan_name

SCAN, MASK = "_ct", "_seg"
REPEATED = re.compile(r"(volume-covid19-A-\d{4})_\d")  # seven ids carry _0 or _1: scans of one patient


class Covid1920:
    """`<root>/Train/volume-covid19-A-0011_ct.nii.gz` with `..._seg.nii.gz`; Validation, without labels, is left."""

    published: ClassVar = "given out at https://covid-segmentation.grand-challenge.org after registration"

    def __init__(self, root: str | Path, labels: Mapping[int, str]):
        self.root = root
        self.labels = label_map(labels, "data.source.labels")

    def listing(self) -> Listing:
        """The labelled pairs."""
        found = Listing()
        files, _ = entries(existing_folder(self.root, "data.root", "Train"))
        names = {name.removesuffix(SCAN).removesuffix(MASK) for name in files}
        for name in sorted(names):
            images, masks = files.get(name + SCAN, []), files.get(name + MASK, [])
            if len(images) != 1 or len(masks) != 1:
                shown = ", ".join(scan_name(path) for path in (*images, *masks)) or name
                found.refuse(name, f"{shown}: one {SCAN} and one {MASK} file are needed", "unpack the data set again")
                continue
            repeated = REPEATED.fullmatch(name)
            patient = repeated[1] if repeated else ""
            found.cases.append(Source(name, images[0], (Mask(masks[0], self.labels),), patient))
        return found
