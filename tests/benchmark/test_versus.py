"""Contenders at equal time: what they are given, what counts as converged, and the whole command in small."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk

from covidseg.benchmark.versus.job import FACTS, Clock, Job, falling, leave
from covidseg.benchmark.versus.sheet import STILL_FALLING, Line, differences, from_plain, markdown, to_plain
from covidseg.config.paths import ROOT
from covidseg.system.files import read_json

SMALL = [
    "data=phantom", "data.source.count=6", "data.source.shape_zyx=[34,48,48]", "data.splits.test_fraction=0.3",
    'versus.train="recipe=smoke model.width=2 data.spacing_zyx=[8,8,8] trainer=cpu"', "versus.minutes=0.02",
    "output=out",
]  # fmt: skip


def curve(losses):
    return [(float(number), loss) for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (np.linspace(1, 0, 100), 0.25),  # straight down: a fifth of the steps, a quarter of the fall between the fifths
        ([1.0] * 20 + [0.0] * 80, 0.0),  # fell and stayed
        ([0.5] * 100, 0.0),  # never moved
        (np.linspace(0, 1, 100), 0.0),  # rose
        ([1.0] * 9, None),
    ],
)
def test_a_loss_that_still_falls_is_known(losses, expected):
    assert falling(curve(losses)) == (expected if expected is None else pytest.approx(expected, abs=0.01))


def test_one_fold_that_still_falls_leaves_the_contender_unconverged():
    level, rising, unknown = {"falling": 0.01}, {"falling": STILL_FALLING}, {"falling": None}
    assert Line("ours", [level, level], []).converged
    assert not Line("ours", [level, rising], []).converged and not Line("ours", [unknown], []).converged


def test_the_clock_ends_when_its_minutes_have_passed():
    shares, clock = [], Clock(0.005)  # .3 s
    began = time.perf_counter()
    for share in clock:
        shares.append(share)
        clock.log(1.0)
        time.sleep(0.02)
    assert 0.3 <= time.perf_counter() - began < 2
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] < 1 and len(clock.losses) == len(shares)


def job(tmp_path, **changes):
    return Job(
        **{
            "contender": "ours", "folder": str(tmp_path), "scans": str(tmp_path), "train": ("a",), "test": ("b",),
            "fold": None, "minutes": 1.0, "seed": 0, "spacing_zyx": (3.0, 2.0, 2.0), "patch_size_zyx": (32, 48, 48),
            "batch_size": 2, "window": (-1250.0, 250.0), "multiply_adds": 10**9, "overrides": ("recipe=demo",),
            **changes,
        }
    )  # fmt: skip


def test_a_job_comes_back_as_it_was_asked(tmp_path):
    asked = job(tmp_path, fold=2)
    assert Job.load(asked.save()) == asked


def test_a_curve_is_thinned_by_means(tmp_path):
    told = {"batch_size": 2, "seconds": 9.0, "preparing": 1.0, "predicting": 2.0, "what": "a network"}
    leave(job(tmp_path), curve([float(n % 2) for n in range(1000)]), **told)
    rows = (tmp_path / "curve.csv").read_text().splitlines()[1:]
    assert len(rows) == 200 and {float(row.split(",")[1]) for row in rows} <= {0.4, 0.6}
    facts = read_json(tmp_path / FACTS)
    assert facts["falling"] == 0.0 and (facts["steps"], facts["patches"]) == (1000, 2000)


def test_differences_are_patient_by_patient_and_told_with_their_limits():
    def line(contender, dice):
        rows = [
            {
                "set": "test",
                "case": case,
                "patient": case,
                "structure": "lesion",
                "dice": score,
                "nsd": "",
                "lesion_f1": "0.5",
            }
            for case, score in zip("abcdefgh", dice, strict=True)
        ]
        facts = {"falling": 0.0, "patches": 10, "seconds": 5.0, "predicting": 4.0, "peak_bytes": 2e9, "what": "small"}
        return Line(contender, [facts], rows)

    scores = [0.5, 0.6, 0.7, 0.4, 0.5, 0.6, 0.7, 0.8]
    behind = [score - 0.1 for score in scores[:-1]] + [0.9]
    lines = [line("dynunet", behind), line("ours", scores), Line("nnunet", (), (), absent="not installed")]
    (compared,) = differences(lines)
    assert compared.difference == pytest.approx((7 * 0.1 - 0.1) / 8) and compared.superiority == 7 / 8
    assert compared.smallest_p == pytest.approx(2 / 2**8)
    text = markdown(lines, "2 minutes of training each.")
    assert "- MONAI's DynUNet, plain loop: +0.075" in text and "better in 88% of 8, p " in text and "0.008" in text
    assert list(differences([lines[0], lines[2]])) == [], "nothing to compare with"
    again = from_plain(json.loads(json.dumps(to_plain(lines))))
    assert markdown(again, "2 minutes of training each.") == text, "what the document's table is made of"


@pytest.mark.slow
def test_the_contenders_that_are_installed_are_trained_scored_and_told(tmp_path):
    """Two of them for a second each; nnU-Net, which tests do without, is told to be absent. Nothing is done twice."""

    def versus(*more):
        command = [sys.executable, str(ROOT / "src/benchmark.py"), "versus", *SMALL, *more]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    wanted = "versus.contenders=[ours,dynunet,nnunet]"
    done = versus(wanted)
    assert done.returncode == 0, done.stderr + done.stdout
    text = (tmp_path / "out/versus/versus.md").read_text()
    assert "covidseg, its recipe" in text and "MONAI's DynUNet" in text
    numbers = json.loads((tmp_path / "out/versus/versus.json").read_text())
    told = {line["contender"]: line for line in numbers["lines"]}
    cases = [sorted(row["case"] for row in told[name]["cases"]) for name in ("ours", "dynunet")]
    assert cases[0] == cases[1] and cases[0], "the same patients"
    assert told["nnunet"]["absent"].startswith("not installed") or told["nnunet"]["cases"]
    for name in ("ours", "dynunet"):
        (facts,) = told[name]["folds"]
        assert facts["patches"] > 0 and facts["peak_bytes"] > 1e8 and facts["predicting"] > 0
    assert (tmp_path / "out/versus/versus.png").stat().st_size > 5000
    again = versus(wanted)
    assert again.returncode == 0 and again.stdout.count("done before") >= 2
    other = versus("versus.contenders=[ours]", "versus.minutes=0.03")
    assert other.returncode == 2 and "holds what was done with other data, minutes or options" in other.stderr

    image, mask, label = (
        sitk.ReadImage(str(path))
        for path in (
            next((tmp_path / "out/versus/raw/Dataset001_versus/imagesTr").glob(f"{cases[0][0]}_0000.nii.gz")),
            next((tmp_path / "out/versus/dynunet/fold0/masks").glob(f"{cases[0][0]}.nii.gz")),
            next((tmp_path / "out/versus/raw/Dataset001_versus/labelsTr").glob(f"{cases[0][0]}.nii.gz")),
        )
    )
    for one in (mask, label):
        assert one.GetSize() == image.GetSize()
        np.testing.assert_allclose(one.GetDirection(), image.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(one.GetOrigin(), image.GetOrigin(), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ([], "data: is not given"),
        (["data=phantom", "versus.contenders=[unet]"], "versus.contenders=unet: there is no such contender"),
        (["data=phantom", "versus.minutes=0"], "versus.minutes=0: is no time"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, arguments, wrong):
    command = [sys.executable, str(ROOT / "src/benchmark.py"), "versus", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and wrong in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
