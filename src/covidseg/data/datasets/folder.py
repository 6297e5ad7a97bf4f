"""Your own data: `images/`, `lesions/`, `lungs/` with equal file names, and who is who in `cases.csv`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from covidseg.data.datasets import (
    ASSUME,
    Listing,
    Mask,
    Source,
    assumed,
    case_id,
    composed,
    entries,
    existing_folder,
    exported,
    label_map,
    read_table,
)

COLUMNS = ("case", "patient", "site", "split")
MAPPED_BY = {"lungs": "'+data.source.lungs={VALUE: lung}'", "lesions": "'+data.source.lesions={VALUE: lesion}'"}
REMEDY = "each image needs one file of the same name in lesions/ or lungs/, or in both"


class Folder:
    """`<root>/images/<case>.nii.gz` (or .mha, .nrrd, a folder with a DICOM series), `lesions/<case>.*`,
    `lungs/<case>.*`.

    A mask is a volume, a .seg.nrrd, or a DICOM SEG or RTSTRUCT (.dcm, or a folder with one of them), and may be called
    as predict.py calls it, `<case>_lesion`. A series may lie deeper in its folder; in an export with a DICOMDIR each is
    a case, called as predict.py calls it. `cases.csv` (case, patient, site, split) is optional; without it each case is
    its own patient.
    """

    def __init__(
        self,
        root: str | Path,
        lesions: Mapping[int, str],
        lungs: Mapping[int, str],
        assume: Mapping[str, Any] | None = None,
        series: str | None = None,
    ):
        """`lesions`, `lungs`: what the values in the files of that folder mean, {1: "lesion"}.

        `assume`: what the user vouches for where the files do not say it (`gate.assume.Assume`). `series`: which CT
        series is meant where a case's DICOM folder holds several: thinnest, most_slices or a UID.
        """
        self.root, self.assume, self.series = root, assumed(assume), series
        self.labels = {
            "lungs": label_map(lungs, "data.source.lungs"),
            "lesions": label_map(lesions, "data.source.lesions"),  # last: a lesion overrides the lung it lies in
        }

    def listing(self) -> Listing:
        """Pair images with masks by name; refuses what is missing, double or told apart by case only."""
        root = existing_folder(self.root, "data.root")
        images = existing_folder(self.root, "data.root", "images")
        found = Listing()
        scans, ignored = exported(images, found) or entries(images)
        masks = {}
        for name in self.labels:
            of_folder, more = entries(root / name, masks=True)
            masks[name] = _as_predicted(of_folder, scans, name)
            ignored += more
        if ignored:
            found.note(f"{ignored} hidden or foreign files passed over")
        table = {composed(name): row for name, row in read_table(root / "cases.csv", COLUMNS).items()}
        alone = {name for group in masks.values() for name in group} - scans.keys()
        bare = {name for name in scans if not any(name in group for group in masks.values())}
        meant = _meant_by(bare, alone)
        for name in sorted(alone - set(meant.values())):
            found.refuse(name, "has a mask and no image", REMEDY)
        for name in sorted(table.keys() - scans.keys()):
            found.refuse(name, "is in cases.csv and has no image", "correct cases.csv")
        spelled: dict[str, list[str]] = {}
        for name in scans:
            spelled.setdefault(name.casefold(), []).append(name)
        for name, paths in scans.items():
            files = {kind: group.get(name, []) for kind, group in masks.items()}
            twice = [path for group in (paths, *files.values()) if len(group) > 1 for path in group]
            if len(spelled[name.casefold()]) > 1:
                others = ", ".join(spelled[name.casefold()])
                found.refuse(name, f"names differ in upper and lower case only: {others}", "rename one of them")
            elif twice:
                found.refuse(name, f"occurs twice: {', '.join(path.name for path in twice)}", "keep one of them")
            elif not any(files.values()):
                other = f", and a mask called {meant[name]} has no image" if name in meant else ""
                found.refuse(name, f"has no mask{other}", REMEDY)
            else:
                row = table.get(name, {})
                found.cases.append(
                    Source(
                        id=case_id(name),
                        image=paths[0],
                        masks=tuple(
                            Mask(files[kind][0], self.labels[kind], MAPPED_BY[kind])
                            for kind in self.labels
                            if files[kind]
                        ),
                        patient=row.get("patient", ""),
                        site=row.get("site", ""),
                        declared=row.get("split", ""),
                        assume=self.assume,
                        option=ASSUME,
                        series=self.series,
                    )
                )
        for kind in self.labels:
            if masks[kind] and (missing := sorted(scans.keys() - masks[kind].keys())):
                shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                found.note(f"{kind}/ has no mask of {len(missing)} of {len(scans)} cases: {shown}")
        return found


def _as_predicted(masks: dict[str, list[Path]], scans: Mapping[str, Any], kind: str) -> dict[str, list[Path]]:
    """The masks by the names of their scans: predict.py calls them `<scan>_lesion`, `<scan>_lung`."""
    ending = f"_{kind.removesuffix('s')}"
    by_scan: dict[str, list[Path]] = {}
    for name, paths in masks.items():
        scan = name.removesuffix(ending)
        by_scan.setdefault(scan if name not in scans and scan in scans else name, []).extend(paths)
    return by_scan


def _meant_by(scans: set[str], masks: set[str]) -> dict[str, str]:
    """{scan: mask} of those that have no fellow of their name, where one name holds the other: scan1, scan1_seg.

    Both are one case that is refused, not two.
    """
    meant: dict[str, str] = {}
    for scan in sorted(scans, key=len, reverse=True):
        fits = sorted(name for name in masks - set(meant.values()) if scan in name or name in scan)
        if fits:
            meant[scan] = fits[0]
    return meant
