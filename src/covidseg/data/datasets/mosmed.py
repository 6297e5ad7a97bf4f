"""MosMedData COVID19_1110: 50 scans with infection masks, no lungs (Morozov et al. 2020, CC BY-NC-ND)."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from covidseg.data.datasets import Listing, Mask, Source, entries, existing_folder, label_map


class MosMed:
    """`<root>/studies/CT-*/study_BBBB.nii.gz` and `<root>/masks/study_BBBB_mask.nii.gz`; scans without a mask are left.

    Only every tenth slice is published, about 8 mm apart. The license allows no converted files: they stay yours.
    """

    published: ClassVar = "given out at https://mosmed.ai/datasets/covid19_1110 after a form"

    def __init__(self, root: str | Path, labels: Mapping[int, str]):
        self.root = root
        self.labels = label_map(labels, "data.source.labels")

    def listing(self) -> Listing:
        """The annotated studies."""
        found = Listing()
        studies: dict[str, list[Path]] = {}
        for severity in sorted(existing_folder(self.root, "data.root", "studies").glob("CT-*")):
            for name, paths in entries(severity)[0].items():
                studies.setdefault(name, []).extend(paths)
        masks, _ = entries(existing_folder(self.root, "data.root", "masks"))
        for mask_name, paths in sorted(masks.items()):
            name = mask_name.removesuffix("_mask")
            images = studies.pop(name, [])
            if len(images) != 1 or len(paths) != 1:
                found.refuse(name, f"has {len(images)} scans and {len(paths)} masks", "one of each is needed")
            else:
                notes = (f"class {images[0].parent.name}",)
                found.cases.append(Source(name, images[0], (Mask(paths[0], self.labels),), notes=notes))
        if studies:
            found.note(f"{len(studies)} studies without a mask passed over")
        return found
