"""Converters on generated trees that are laid out, and misbehave, like the real data sets."""

import errno
import json
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from covidseg.cli.prepare import show
from covidseg.config.paths import CONF
from covidseg.data.datasets import case_id
from covidseg.data.datasets.covid19_20 import Covid1920
from covidseg.data.datasets.covid19_ct_seg import Covid19CTSeg
from covidseg.data.datasets.folder import REMEDY, Folder
from covidseg.data.datasets.mosmed import MosMed
from covidseg.data.datasets.nnunet import NNUNet
from covidseg.data.prepare import run as preparation
from covidseg.data.prepare.folder import list_failures
from covidseg.data.prepare.run import Outcome, prepare
from covidseg.data.prepare.splits import published_folds
from covidseg.system.errors import BadInput, EnvironmentFault
from volumes import Make

CORONA = [f"coronacases_{k:03d}" for k in range(1, 11)]
RADIO = [
    f"radiopaedia_{name}"
    for name in (
        "4_85506_1", "7_85703_0", "10_85902_1", "10_85902_3", "14_85914_0",
        "27_86410_0", "29_86490_1", "29_86491_1", "36_86526_0", "40_86625_0",
    )
]  # fmt: skip


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def forbidden(*_):
    """As the system answers whoever is not root."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def config_of(dataset, root, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("prepare", overrides=[f"data={dataset}", f"data.root={root}", *overrides])
    return preparation.plain(cfg.data)


def listing(dataset, root, *overrides):
    """What the shipped configuration of a data set finds."""
    return preparation.listing(config_of(dataset, root, *overrides))


@pytest.fixture
def folder(tmp_path):
    touch(tmp_path, *(f"{kind}/{case}.nii.gz" for kind in ("images", "lesions", "lungs") for case in "abc"))
    return Folder(tmp_path, lesions={1: "lesion"}, lungs={1: "lung", 2: "lung"})


def refused(found):
    return {name: str(error) for name, error in found.refused}


def test_folder_pairs_by_name_whatever_the_format(folder, tmp_path):
    touch(tmp_path, "images/d.nrrd", "lesions/d.mha", "images/series/IM1", "lungs/series.nii.gz")
    cases = {case.id: case for case in folder.listing().cases}
    assert set(cases) == {"a", "b", "c", "d", "series"}
    assert [mask.path.parent.name for mask in cases["a"].masks] == ["lungs", "lesions"]
    assert cases["d"].annotated == ("lesion",) and cases["series"].annotated == ("lung",)
    assert cases["series"].image.is_dir()


def test_folder_reads_who_is_who(folder, tmp_path):
    (tmp_path / "cases.csv").write_text("\ufeffcase,patient,site,split\na,p1,Essen,\nb, p1 ,Essen,train\n")
    cases = {case.id: (case.patient, case.site, case.declared) for case in folder.listing().cases}
    assert cases == {"a": ("p1", "Essen", ""), "b": ("p1", "Essen", "train"), "c": ("", "", "")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,patient,hospital\na,p,q\n", "unknown columns hospital"),
        ("patient\np\n", "no column `case`"),
        ("case,patient\na,p\na,q\n", "case a occurs twice"),
        ("case,patient\na,Doe, John\n", "line 2 has 3 fields, its header 2"),
        ("case,patient,patient\na,p,q\n", "has two columns patient"),
        ("case,patient\na,p\n,q\n", "line 3 names no case"),
        ('case,patient\na,"p\n', "is no table of comma-separated values"),
        ("case;patient\na;p\n", "unknown columns case;patient"),
        ("", "is empty"),
        ("case,patient\na,M\u00fcller\n".encode("cp1252"), "is not UTF-8 text -> save it as CSV UTF-8"),
        ("case,patient\na,p\n".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_folder_refuses_a_strange_table(folder, tmp_path, text, message):
    (tmp_path / "cases.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=message) as caught:
        folder.listing()
    assert str(caught.value).startswith("cases.csv: ") and caught.value.remedy


def test_folder_takes_what_spreadsheets_write(folder, tmp_path):
    (tmp_path / "cases.csv").write_bytes(b'\xef\xbb\xbfcase,patient\r\na,"Doe, J"\r\n\r\n,\r\nb\r\nc,q,,\r\n')
    assert [case.patient for case in folder.listing().cases] == ["Doe, J", "", "q"]


def test_folder_does_not_go_on_without_a_table_that_is_there(folder, tmp_path, monkeypatch):
    table = tmp_path / "cases.csv"
    table.symlink_to("nowhere.csv")
    with pytest.raises(BadInput, match=r"cases\.csv: is a link to nothing -> "):
        folder.listing()
    table.unlink()
    table.mkdir()
    with pytest.raises(BadInput, match=r"cases\.csv: is a folder -> "):
        folder.listing()
    table.rmdir()
    os.mkfifo(table)
    with pytest.raises(BadInput, match=r"cases\.csv: is a pipe"):
        folder.listing()
    table.unlink()
    table.write_text("case\na\n")
    monkeypatch.setattr("covidseg.scans.gate.names.os.open", forbidden)
    with pytest.raises(EnvironmentFault, match=r"cases\.csv: permission denied -> "):
        folder.listing()


def test_c7_missing_double_and_clashing_names_are_refused_one_by_one(folder, tmp_path):
    touch(
        tmp_path, "images/bare.nii.gz", "lesions/orphan.nii.gz", "lesions/b.nrrd",
        "images/C.nii.gz", "lungs/C.nii.gz", "images/a.nii",
    )  # fmt: skip
    (tmp_path / "cases.csv").write_text("case\nghost\n")
    found = folder.listing()
    assert not found.cases
    wrong = refused(found)
    assert "has no mask" in wrong["bare"] and "has a mask and no image" in wrong["orphan"]
    assert "b.nii.gz, b.nrrd" in wrong["b"] and "a.nii, a.nii.gz" in wrong["a"]
    assert "upper and lower case" in wrong["c"] and "upper and lower case" in wrong["C"]
    assert "has no image" in wrong["ghost"]


def test_an_image_and_a_mask_of_almost_its_name_are_one_refused_case(folder, tmp_path):
    touch(tmp_path, "images/p10.nii.gz", "lesions/p10_seg.nii.gz", "images/p1.nii.gz", "lesions/p1_seg.nii.gz")
    found = folder.listing()
    assert refused(found) == {
        "p1": "case p1: has no mask, and a mask called p1_seg has no image -> " + REMEDY,
        "p10": "case p10: has no mask, and a mask called p10_seg has no image -> " + REMEDY,
    }
    assert [case.id for case in found.cases] == ["a", "b", "c"]


def test_a13_hidden_files_are_passed_over_and_counted(folder, tmp_path):
    touch(tmp_path, "images/._a.nii.gz", "images/.DS_Store", "lesions/Thumbs.db")
    found = folder.listing()
    assert [case.id for case in found.cases] == ["a", "b", "c"] and not found.refused
    assert found.notes == ["3 hidden or foreign files passed over"]


def test_names_that_are_no_text_can_be_told(folder, tmp_path, capsys):
    """Files from a Latin-1 machine: refused one by one, and printed."""
    for kind, name in (
        ("images", b"M\xfcller"),
        ("lungs", b"Mei\xdfner"),
        ("images", b"H\xfcls"),
        ("lungs", b"H\xfcls"),
    ):
        path = os.fsencode(tmp_path / kind) + b"/" + name + b".nii.gz"
        with open(path, "wb") as stream:
            stream.write(b"x")
    (tmp_path / "cases.csv").write_text("case,patient\na,p\x1b[1m\n")
    found = folder.listing()
    outcome = Outcome([], found.refused, found.notes)
    show(outcome, Console())
    out = capsys.readouterr().out
    assert "M\\udcfcller REFUSED: has no mask" in out and "Mei\\udcdfner REFUSED: has a mask and no image" in out
    list_failures(tmp_path, outcome.refused)
    for text in (*refused(found).values(), *found.notes, (tmp_path / "failures.csv").read_text()):
        text.encode()


def test_folder_without_root_says_what_to_give(tmp_path):
    with pytest.raises(BadInput, match=r"data\.root: has no value -> .*data\.root="):
        listing("folder", "null")
    with pytest.raises(BadInput, match=r"data\.root=nowhere: there is no such folder"):
        listing("folder", tmp_path / "nowhere")
    with pytest.raises(BadInput, match=rf"data\.root={tmp_path.name}: holds no folder images/ -> "):
        listing("folder", tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(BadInput, match="holds no case"):
        listing("folder", tmp_path)


def test_a_wrong_option_of_a_converter_is_one_line(tmp_path):
    with pytest.raises(BadInput) as caught:
        listing("folder", tmp_path, "data.source.lesions={1: tumour}")
    assert caught.value.what == "data.source.lesions" and str(caught.value).count(" -> ") == 1


@pytest.mark.parametrize("name", ["images", "lungs"])
def test_a_folder_that_may_not_be_read_is_an_environment_fault(folder, tmp_path, monkeypatch, name):
    real = os.listdir
    monkeypatch.setattr(
        "covidseg.scans.gate.names.os.listdir",
        lambda path: forbidden() if Path(path).name == name else real(path),
    )
    with pytest.raises(EnvironmentFault, match=f"^{name}: permission denied -> "):
        folder.listing()


def test_label_map_with_a_strange_name_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"data\.source\.lesions"):
        Folder(tmp_path, lesions={1: "tumour"}, lungs={1: "lung"})


@given(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=200))
def test_p13_any_name_becomes_a_safe_and_distinct_folder_name(name):
    safe = case_id(name)
    assert safe not in (".", "..") and len(safe) <= 128
    assert set(safe) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert Path(safe).name == safe
    assert case_id(name + "x") != safe


def test_ids_that_differ_in_case_only_after_cleaning_are_refused(tmp_path):
    touch(tmp_path, "images/a b.nii.gz", "lungs/a b.nii.gz", "images/a-b.nii.gz", "lungs/a-b.nii.gz")
    found = listing("folder", tmp_path)
    assert len({case.id for case in found.cases}) == 2


# the public data sets


def ct_seg(root, names=None):
    for folder in ("COVID-19-CT-Seg_20cases", "Lung_and_Infection_Mask", "Lung_Mask", "Infection_Mask"):
        touch(root, *(f"{folder}/{name}.nii.gz" for name in CORONA + RADIO), f"{folder}/._{CORONA[0]}.nii.gz")


def test_covid19_ct_seg_as_published(tmp_path):
    ct_seg(tmp_path)
    found = listing("covid19_ct_seg", tmp_path)
    cases = {case.id: case for case in found.cases}
    assert set(cases) == {*CORONA, *RADIO} and not found.refused
    assert all(case.annotated == ("lung", "lesion") and len(case.masks) == 1 for case in cases.values())
    assert dict(cases[RADIO[0]].masks[0].labels) == {1: 1, 2: 1, 3: 2}
    assert [name for name, case in cases.items() if case.assume] == sorted(RADIO)
    assert len({case.patient or case.id for case in cases.values()}) == 18  # 19, or 18 with the suspected pair
    assert cases["radiopaedia_10_85902_1"].patient == cases["radiopaedia_10_85902_3"].patient


def test_covid19_ct_seg_with_separate_masks_and_the_renamed_copy(tmp_path):
    images = ["coronacases_org_001.nii", "coronacases_org_case007.nii", "coronacases_org_case010.nii", "case009.nii"]
    numbers = ("001", "007", "010", "009")
    touch(tmp_path, *(f"COVID-19-CT-Seg_20cases/{name}" for name in images))
    touch(tmp_path, *(f"{kind}/coronacases_{n}.nii.gz" for kind in ("Lung_Mask", "Infection_Mask") for n in numbers))
    found = listing("covid19_ct_seg", tmp_path)
    assert {case.id for case in found.cases} == {f"coronacases_{n}" for n in numbers}
    assert [dict(mask.labels) for mask in found.cases[0].masks] == [{1: 1, 2: 1}, {1: 2}]
    touch(tmp_path, "COVID-19-CT-Seg_20cases/coronacases_009.nii.gz")
    assert "occurs twice" in refused(listing("covid19_ct_seg", tmp_path))["coronacases_009"]


def test_published_folds_are_patient_wise_and_complete():
    for file, train in (("covid19_ct_seg_16train.json", 16), ("covid19_ct_seg_4train.json", 4)):
        folds = published_folds(file)
        assert [(len(fold["train"]), len(fold["test"])) for fold in folds] == [(train, 20 - train)] * 5
        for fold in folds:
            assert sorted(fold["train"] + fold["test"]) == sorted(CORONA + RADIO)
    tested = [case for fold in published_folds("covid19_ct_seg_16train.json") for case in fold["test"]]
    assert sorted(tested) == sorted(CORONA + RADIO)  # each case is tested once


def test_eight_bit_half_becomes_hu(tmp_path, small_chest, write_volume):
    hu, labels = small_chest(0)
    inside = np.clip(hu, -1250, 250)
    grey = np.rint((inside + 1250) / 1500 * 255).astype(np.uint8)
    for name in ("radiopaedia_4_85506_1", "radiopaedia_7_85703_0"):
        write_volume(tmp_path / "COVID-19-CT-Seg_20cases" / f"{name}.nii.gz", grey)
        combined = np.choose(labels, [0, 2, 3]).astype(np.uint8)
        write_volume(tmp_path / "Lung_and_Infection_Mask" / f"{name}.nii.gz", combined)
    changes = ["data.spacing_zyx=[8,9,9]", "data.workers=0", "data.splits.published=null"]
    dataset = prepare(config_of("covid19_ct_seg", tmp_path, *changes), {"data": str(tmp_path / "data")})
    case = dataset.cases["radiopaedia_4_85506_1"]
    assert np.abs(case.image - case.grid.image(inside)).max() <= 4  # half a grey level
    assert np.array_equal(case.reference(), labels)
    assert any("8-bit" in note for note in case.info["notes"])


def test_mosmed(tmp_path):
    touch(tmp_path, *(f"studies/CT-{k % 5}/study_{k:04d}.nii.gz" for k in range(250, 260)), "studies/CT-0/._x.nii.gz")
    touch(tmp_path, "masks/study_0255_mask.nii.gz", "masks/study_0256_mask.nii.gz", "masks/study_0999_mask.nii.gz")
    found = listing("mosmed", tmp_path)
    assert [case.id for case in found.cases] == ["study_0255", "study_0256"]
    assert found.cases[0].annotated == ("lesion",) and found.cases[1].notes == ("class CT-1",)
    assert "has 0 scans and 1 masks" in refused(found)["study_0999"]
    assert found.notes == ["8 studies without a mask passed over"]


def test_covid19_20(tmp_path):
    names = ["volume-covid19-A-0011", "volume-covid19-A-0034_0", "volume-covid19-A-0034_1"]
    touch(tmp_path, *(f"Train/{name}{end}.nii.gz" for name in names for end in ("_ct", "_seg")))
    touch(tmp_path, "Train/volume-covid19-A-0050_ct.nii.gz", "Validation/volume-covid19-A-0002_ct.nii.gz")
    found = listing("covid19_20", tmp_path)
    patients = {case.id: case.patient for case in found.cases}
    assert patients == {names[0]: "", names[1]: "volume-covid19-A-0034", names[2]: "volume-covid19-A-0034"}
    assert list(refused(found)) == ["volume-covid19-A-0050"]


def nnunet(root, labels):
    touch(root, *(f"imagesTr/{case}_0000.nii.gz" for case in "ab"), *(f"labelsTr/{case}.nii.gz" for case in "ab"))
    touch(root, "imagesTs/t_0000.nii.gz", "labelsTs/t.nii.gz", "imagesTs/u_0000.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))


@pytest.mark.parametrize(
    "labels", [{"background": 0, "lung": 1, "Infection": 2}, {"0": "background", "1": "Lung", "2": "COVID lesion"}]
)
def test_nnunet_reads_both_forms_of_its_label_list(tmp_path, labels):
    nnunet(tmp_path, labels)
    found = listing("nnunet", tmp_path)
    assert [(case.id, case.declared) for case in found.cases] == [("a", ""), ("b", ""), ("t", "test")]
    assert dict(found.cases[0].masks[0].labels) == {1: 1, 2: 2}


def test_nnunet_asks_for_what_it_cannot_know(tmp_path):
    nnunet(tmp_path, {"background": 0, "tumour": 1})
    with pytest.raises(BadInput, match=r"label 'tumour' is not plainly .*data\.source\.labels=\{1: lesion\}"):
        listing("nnunet", tmp_path)
    assert listing("nnunet", tmp_path, "data.source.labels={1: lesion}").cases[0].annotated == ("lesion",)
    nnunet(tmp_path, {"background": 0, "whole": [1, 2]})
    with pytest.raises(BadInput, match="is a region"):
        listing("nnunet", tmp_path)
    touch(tmp_path, "imagesTr/a_0001.nii.gz")
    with pytest.raises(BadInput, match="channels _0000, _0001"):
        listing("nnunet", tmp_path, "data.source.labels={1: lesion}")


def test_nnunet_without_the_channels_number_says_how_to_rename_and_it_works(tmp_path, small_chest, write_volume):
    for seed, name in enumerate("ab"):
        hu, labels = small_chest(seed)
        as_nnunet(tmp_path, name, hu, (labels == 2).astype(np.uint8), write_volume)
        (tmp_path / f"imagesTr/{name}_0000.mha").rename(tmp_path / f"imagesTr/{name}.mha")
    with pytest.raises(BadInput, match="2 of 2 images do not end in their channel's number") as caught:
        listing("nnunet", tmp_path)
    old, new = re.search(r"as (\S+) to (\S+);", str(caught.value)).groups()
    for name in "ab":
        (tmp_path / "imagesTr" / old.replace("a", name, 1)).rename(tmp_path / "imagesTr" / new.replace("a", name, 1))
    assert [case.id for case in listing("nnunet", tmp_path).cases] == ["a", "b"]


def test_names_in_two_unicode_forms_are_one_name(folder, tmp_path):
    """An image from a Mac (letter and accent apart), its mask from a PC."""
    apart, together = (unicodedata.normalize(form, "José") for form in ("NFD", "NFC"))
    assert apart != together
    touch(tmp_path, f"images/{apart}.nii.gz", f"lesions/{together}.nii.gz")
    (tmp_path / "cases.csv").write_text(f"case,patient\n{apart},p9\n", encoding="utf-8")
    found = folder.listing()
    assert not found.refused and len(found.cases) == 4
    assert "p9" in {case.patient for case in found.cases}


def test_a_mask_of_3d_slicer_is_called_after_its_scan(folder, tmp_path):
    touch(tmp_path, "images/d.nii.gz", "lesions/d.seg.nrrd")
    assert [case.id for case in folder.listing().cases] == ["a", "b", "c", "d"]


def test_a_series_is_chosen_by_rule_and_may_lie_deeper(tmp_path, small_chest, write_volume):
    """A patient's folder as TCIA lays it out, with a thin and a thick series."""
    hu, labels = small_chest(0)
    write_volume(tmp_path / "lesions/a.mha", (labels == 2).astype(np.uint8), (4.0, 9.0, 9.0))
    for number, thickness in (("1", 8.0), ("2", 4.0)):
        place = tmp_path / "images/a/study" / number
        place.mkdir(parents=True)
        grid = Make.geometry(hu.shape, spacing_xyz=(9.0, 9.0, thickness), origin_xyz=(-100.0, 50.0, 7.5))
        Make.dicom(place, hu, grid, uid=f"1.2.{number}")
    common = ["data.workers=0", "data.splits.test_fraction=0", "data.spacing_zyx=[9,9,9]", "data.splits.folds=0"]
    (refusal,) = preparation.check(config_of("folder", tmp_path, *common)).refused
    assert "holds 2 CT series" in str(refusal[1]) and "data.source.series=" in str(refusal[1])
    outcome = preparation.check(config_of("folder", tmp_path, *common, "data.source.series=thinnest"))
    assert not outcome.refused and any("series 1.2.2 chosen of 2" in note for note in outcome.infos[0]["notes"])


def test_a_pacs_export_is_prepared_by_the_ids_that_predict_gives(tmp_path, small_chest, write_volume):
    hu, labels = small_chest(0)
    grid = Make.geometry(hu.shape, spacing_xyz=(9.0, 9.0, 8.0), origin_xyz=(-100.0, 50.0, 7.5))
    for patient in ("PAT1", "PAT2"):
        place = tmp_path / "images/DICOM" / patient / "STU0/SER1"
        place.mkdir(parents=True)
        Make.dicom(place, hu, grid, uid=f"1.2.{patient[-1]}")
        write_volume(tmp_path / f"lesions/DICOM-{patient}-STU0-SER1.mha", (labels == 2).astype(np.uint8))
    (tmp_path / "images/DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    common = ["data.workers=0", "data.splits.test_fraction=0", "data.spacing_zyx=[9,9,9]", "data.splits.folds=0"]
    outcome = preparation.check(config_of("folder", tmp_path, *common))
    assert [info["id"] for info in outcome.infos] == ["DICOM-PAT1-STU0-SER1", "DICOM-PAT2-STU0-SER1"]
    assert not outcome.refused


def test_twins_in_an_export_are_refused_and_neither_is_taken(folder, tmp_path):
    touch(tmp_path, "images/DICOMDIR", "images/deep/d.nii.gz", "images/deep/d.nrrd", "lesions/d.nii.gz")
    found = folder.listing()
    assert [case.id for case in found.cases] == ["a", "b", "c"]
    assert any("has the same id as" in str(error) for _, error in found.refused)


def followed(message):
    """The override that a remedy names, as a shell would hand it over."""
    quoted = re.search(r"'(\+?data\.source[^']*)'", message)
    return quoted[1] if quoted else re.search(r"data\.source\.assume\.[\w=-]+", message)[0]


def as_folder(root, name, hu, labels, write_volume):
    write_volume(root / f"images/{name}.mha", hu)
    write_volume(root / f"lesions/{name}.mha", labels)


def as_nnunet(root, name, hu, labels, write_volume):
    write_volume(root / f"imagesTr/{name}_0000.mha", hu)
    write_volume(root / f"labelsTr/{name}.mha", labels)
    (root / "dataset.json").write_text('{"labels": {"background": 0, "lesion": 1}}')


@pytest.mark.parametrize(("dataset", "write"), [("folder", as_folder), ("nnunet", as_nnunet)])
@pytest.mark.parametrize("spoil", ["hu", "fill", "orientation", "labels"])
def test_the_remedy_in_a_refusal_works_when_it_is_followed(tmp_path, small_chest, write_volume, dataset, write, spoil):
    hu, labels = small_chest(0)
    lesion = (labels == 2).astype(np.uint8)
    if spoil == "hu":
        hu = np.clip(hu, -160, 240)
    elif spoil == "fill":
        hu = hu.astype(np.float32)
        hu[0, 0, 0] = np.nan
    elif spoil == "labels":
        lesion *= 255
    write(tmp_path, "a", hu, lesion, write_volume)
    if spoil == "orientation":
        for path in tmp_path.rglob("*.mha"):
            raw = path.read_bytes()
            path.write_bytes(raw.replace(b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""))
    common = ["data.workers=0", "data.splits.test_fraction=0", "data.spacing_zyx=[9,9,9]", "data.splits.folds=0"]
    refused = preparation.check(config_of(dataset, tmp_path, *common)).refused
    assert len(refused) == 1
    override = followed(str(refused[0][1]))
    assert spoil in override or spoil == "labels"
    outcome = preparation.check(config_of(dataset, tmp_path, *common, override))
    assert [info["id"] for info in outcome.infos] == ["a"] and not outcome.refused
    assert outcome.infos[0]["volume_ml"]["lesion"] > 0


def test_what_is_assumed_is_part_of_the_hash_and_checked_at_once(tmp_path, small_chest, write_volume):
    for seed, name in enumerate("abc"):
        hu, labels = small_chest(seed)
        as_folder(tmp_path / "raw", name, hu, (labels == 2).astype(np.uint8), write_volume)
    common = ["data.workers=0", "data.spacing_zyx=[9,9,9]", "data.splits.folds=0"]

    def folder(*overrides):
        config = config_of("folder", tmp_path / "raw", *common, *overrides)
        return prepare(config, {"data": str(tmp_path / "data")}).folder

    assert folder() != folder("data.source.assume.offset=3")
    assert folder() == folder("data.source.assume=null")
    with pytest.raises(BadInput, match=r"^data\.source\.assume\.hu: is 3 -> give true or false"):
        folder("data.source.assume.hu=3")
    with pytest.raises(BadInput, match=r"^data\.source\.assume: unknown option 'ofset'"):
        folder("+data.source.assume.ofset=3")
    with pytest.raises(BadInput, match=r"^data\.source\.assume: is 'LPS'"):
        folder("data.source.assume=LPS")


def test_every_converter_is_reached_by_a_shipped_configuration():
    shipped = {
        config_of(path.stem, "x")["source"]["_target_"].rsplit(".", 1)[1] for path in (CONF / "data").glob("*.yaml")
    }
    own = {kind.__name__ for kind in (Folder, Covid19CTSeg, MosMed, Covid1920, NNUNet)}
    assert shipped == own | {"Phantoms"}
