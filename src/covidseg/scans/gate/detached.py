"""Volumes of two files: a text header, and voxels in a file beside it that the header names."""

from pathlib import Path

from covidseg.scans.gate import metaimage, nrrd
from covidseg.scans.gate.names import kind, opened, suffix_of
from covidseg.scans.gate.text_header import beside
from covidseg.system.errors import CovidSegError

_FORMATS = {".mha": metaimage, ".mhd": metaimage, ".nrrd": nrrd, ".nhdr": nrrd}


def voxel_path(path: Path) -> Path | None:
    """The second file of a volume; None where it is all in one, or its header cannot be read (reading refuses it)."""
    form = _FORMATS.get(suffix_of(path))
    try:
        if form is None or kind(path) != "file":
            return None
        with opened(path) as stream:
            name = form.data_file(form.read_header(path, stream))
        return None if name is None else beside(path, name)
    except CovidSegError:
        return None
