"""Small CT phantoms in every format, and ways to spoil them (`helpers/volumes.py`)."""

from pathlib import Path

import pytest

from covidseg.scans.read import read_scan
from covidseg.system.errors import BadInput, CovidSegError
from volumes import Make


@pytest.fixture(scope="session")
def make():
    return Make


@pytest.fixture(scope="session")
def refused():
    """Assert that reading fails as it should: one line, the name and no folder of it, and a remedy."""

    def check(path, pattern, read=read_scan, error=BadInput, **options):
        with pytest.raises(CovidSegError, match=pattern) as caught:
            read(path, **options)
        assert isinstance(caught.value, error)
        line = str(caught.value)
        assert "\n" not in line and str(Path(path).parent) not in line
        assert caught.value.remedy
        return line

    return check
