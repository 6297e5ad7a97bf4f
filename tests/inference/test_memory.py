"""What a scan of a thousand slices takes of memory, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

PEAK = """
from covidseg.cli.predict import main
main()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # getrusage counts the parent's memory, too
print("peak", int(status["VmHWM"].split()[0]) * 1024)
"""
SIDE = 256


def chest(path, slices):
    """Two air-filled ellipsoids in a cylinder of tissue, 300 mm high in any number of slices."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:slices, :SIDE, :SIDE]
    body = ((y - 128) / 110) ** 2 + ((x - 128) / 120) ** 2 < 1
    hu = np.where(body, rng.integers(-20, 100, (slices, SIDE, SIDE)), -1000).astype(np.int16)
    for centre in (75, 180):
        hu[((z - slices / 2) / (slices * 0.4)) ** 2 + ((y - 128) / 70) ** 2 + ((x - centre) / 42) ** 2 < 1] = -850
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((1.4, 1.4, 300 / slices))
    sitk.WriteImage(image, str(path))
    return hu.nbytes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_a_thousand_slices_take_at_most_five_times_their_voxels_more(make_run, tmp_path):
    """Over what the program takes for few: four times were measured, with a mask of all the scan."""
    run, peaks, volumes = make_run("lung"), [], []
    for slices in (100, 1000):
        volumes.append(chest(tmp_path / f"{slices}.nii.gz", slices))
        options = (f"run={run}", f"input={slices}.nii.gz", f"output=out{slices}", "reading.assume.hu=true")
        command = [sys.executable, "-c", PEAK, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak")[-1]))
    assert peaks[1] - peaks[0] < 5 * (volumes[1] - volumes[0])
    assert peaks[1] < 2 << 30
