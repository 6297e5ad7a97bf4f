"""COVID-19-CT-Seg: 20 scans with lungs and infection (Ma et al. 2021, DOI 10.5281/zenodo.3757476, CC BY-NC-SA)."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from covidseg.data.datasets import Listing, Mask, Source, entries, existing_folder, label_map, scan_name
from covidseg.data.download import Record

IMAGES = "COVID-19-CT-Seg_20cases"
COMBINED = "Lung_and_Infection_Mask"
SEPARATE = {"Lung_Mask": "lung", "Infection_Mask": "lesion"}
RENAMED = re.compile(r"(?:coronacases_org_(?:case)?|case)(\d{3})")  # of a copy: coronacases_org_001.nii, case009.nii
STORED_WINDOW = [-1250.0, 250.0]  # the Radiopaedia half is stored as 0..255 of this HU window


RECORD = Record(
    url="https://zenodo.org/api/records/3757476",
    sha256={
        "COVID-19-CT-Seg_20cases.zip": "a5060480eff9315b069b086312dac4872777901fb80d268a5a83edd9f4e7b440",
        "Lung_and_Infection_Mask.zip": "34f5a573cb8fb53cb15abe81868395d9addf436854826a6fd6e70c2b294f19c3",
    },
    doi="https://doi.org/10.5281/zenodo.3757476",
    licence="CC BY-NC-SA 4.0",
)


class Covid19CTSeg:
    """The unpacked zips side by side under `root`, one folder each; names as published or as in the renamed copy.

    `Lung_and_Infection_Mask` is taken where it is there, otherwise `Lung_Mask` and `Infection_Mask`.
    """

    published: ClassVar = RECORD

    def __init__(self, root: str | Path, labels: Mapping[int, str], same_patient: Sequence[Sequence[str]]):
        """`labels`: values of the combined masks; `same_patient`: groups of cases that are one patient."""
        self.root = root
        self.labels = label_map(labels, "data.source.labels")
        self.patient = {case: "+".join(group) for group in same_patient for case in group}

    def listing(self) -> Listing:
        """All scans with their masks, by published name."""
        root = existing_folder(self.root, "data.root")
        found = Listing()
        images = self._named(existing_folder(self.root, "data.root", IMAGES))
        combined = self._named(root / COMBINED)
        separate = {name: self._named(root / folder) for folder, name in SEPARATE.items()}
        for name, paths in sorted(images.items()):
            masks = [Mask(path, self.labels) for path in combined.get(name, [])]
            if not masks:
                masks = [
                    Mask(path, label_map({1: part, 2: part} if part == "lung" else {1: part}, folder))
                    for (part, group), folder in zip(separate.items(), SEPARATE, strict=True)
                    for path in group.get(name, [])
                ]
            if len(paths) > 1:
                found.refuse(name, f"occurs twice: {', '.join(path.name for path in paths)}", "keep one of them")
            elif not masks:
                found.refuse(name, "has no mask", f"unpack {COMBINED}.zip beside {IMAGES}")
            else:
                grey = name.startswith("radiopaedia")
                assume = {"window_8bit": STORED_WINDOW} if grey else None
                notes = ("8-bit grey levels of a window: HU in steps of 6, no value outside it",) if grey else ()
                patient = self.patient.get(name, "")
                found.cases.append(Source(name, paths[0], tuple(masks), patient, assume=assume, notes=notes))
        return found

    @staticmethod
    def _named(folder: Path) -> dict[str, list[Path]]:
        """Scans of a folder by their published name."""
        named: dict[str, list[Path]] = {}
        for paths in entries(folder)[0].values():
            for path in paths:
                renamed = RENAMED.fullmatch(scan_name(path))
                name = f"coronacases_{renamed[1]}" if renamed else scan_name(path)
                named.setdefault(name, []).append(path)
        return named
