"""Small CT phantoms in every format. nibabel, pydicom and SimpleITK write them; the gate reads them."""

import gzip
import struct
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from covidseg.scans.geometry import Geometry

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
SPACING_XYZ = (0.8, 0.9, 2.5)
ORIGIN_XYZ = (-20.0, -30.0, -100.0)
RAS_LPS = np.diag([-1.0, -1.0, 1.0])


def write_volume(path, array, spacing_zyx=(8.0, 9.0, 9.0), direction=IDENTITY):
    """Write an array with its grid in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_zyx[::-1])
    image.SetOrigin((-100.0, 50.0, 7.5))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def small_chest(seed, lesion=True):
    """(HU, label map) of 16 x 28 x 32 voxels: a body with two lungs and one lesion."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[:16, :28, :32]
    body = ((y - 14) / 11) ** 2 + ((x - 16) / 14) ** 2 < 1
    labels = np.zeros((16, 28, 32), np.uint8)
    for centre in (10, 22):
        labels[((z - 8) / 6.5) ** 2 + ((y - 14) / 7) ** 2 + ((x - centre) / 4.5) ** 2 < 1] = 1
    if lesion:
        middle = (8, 16 + seed % 3, 10)
        spot = sum((axis - at) ** 2 for axis, at in zip((z, y, x), middle, strict=True)) < 9
        labels[spot & (labels == 1)] = 2
    hu = np.choose(labels, [np.where(body, 40, -1000), -850, -400]) + rng.normal(0, 30, labels.shape)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16), labels


class Make:
    """Builders of phantoms; session-wide, so that property tests may use them."""

    @staticmethod
    @contextmanager
    def folder():
        with tempfile.TemporaryDirectory(prefix="gate-") as name:
            yield Path(name)

    @staticmethod
    def ct(shape=(6, 40, 48), seed=0):
        """int16 HU: air around a body with two lungs, in noise; int16 (z, y, x)."""
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape), indexing="ij")
        hu = np.full(shape, -1000.0)
        hu[(x / 0.9) ** 2 + (y / 0.8) ** 2 < 1] = 40
        for side in (-0.4, 0.4):
            hu[((x - side) / 0.3) ** 2 + (y / 0.5) ** 2 + (z / 2) ** 2 < 1] = -850
        return np.clip(np.rint(hu + np.random.default_rng(seed).normal(0, 10, shape)), -1024, None).astype(np.int16)

    @staticmethod
    def geometry(shape=(6, 40, 48), direction=None, spacing_xyz=SPACING_XYZ, origin_xyz=ORIGIN_XYZ):
        direction = np.eye(3) if direction is None else direction
        return Geometry(shape, spacing_xyz[::-1], origin_xyz, tuple(np.ravel(direction)))

    @staticmethod
    def nifti(path, array, geometry=None, *, slope=None, patch=()):
        """Written by nibabel; `patch` = (offset, struct format, values...) edits of the header afterwards."""
        geometry = geometry or Make.geometry(array.shape)
        affine = np.eye(4)
        affine[:3, :3] = RAS_LPS @ geometry.step_mm
        affine[:3, 3] = RAS_LPS @ geometry.origin_xyz
        image = nib.Nifti1Image(array.transpose(2, 1, 0), affine, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        raw = bytearray(image.to_bytes())
        if slope is not None:
            struct.pack_into("<2f", raw, 112, *slope)
        for offset, form, *values in patch:
            struct.pack_into(form, raw, offset, *values)
        path = Path(path)
        if path.name.lower().endswith(".gz"):
            raw = gzip.compress(bytes(raw), mtime=0)
        path.write_bytes(raw)
        return path

    @staticmethod
    def itk(path, array, geometry=None, compress=False):
        """Written by SimpleITK, whatever the extension says."""
        geometry = geometry or Make.geometry(array.shape)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(geometry.spacing_zyx[::-1])
        image.SetOrigin(geometry.origin_xyz)
        image.SetDirection(geometry.direction)
        sitk.WriteImage(image, str(path), useCompression=compress)
        return Path(path)

    @staticmethod
    def any_format(path, array, geometry=None, compress=False):
        write = Make.nifti if ".nii" in Path(path).name else lambda *a: Make.itk(*a, compress=compress)
        return write(path, array, geometry)

    @staticmethod
    def dicom(folder, hu, geometry=None, *, edit=None, name="IM{:04d}.dcm", uid=None, after=None):
        """One CT series by pydicom, stored = HU + 1024; `edit(i, dataset)` spoils a slice, `after` encodes it."""
        geometry = geometry or Make.geometry(hu.shape)
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        entropy = [folder.name, name]  # the same bytes every time, which property tests need
        uid, frame = uid or generate_uid(entropy_srcs=entropy), generate_uid(entropy_srcs=["frame"])
        for i, image in enumerate(hu):
            ds = pydicom.Dataset()
            ds.file_meta = pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=[*entropy, str(i)])
            ds.ImageType, ds.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
            ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Canary^Patient", "CANARY-ID", "19010203"
            ds.SeriesInstanceUID, ds.FrameOfReferenceUID, ds.StudyInstanceUID = uid, frame, frame
            ds.InstanceNumber, ds.SliceThickness = i + 1, geometry.spacing_zyx[0]
            ds.ImagePositionPatient = [f"{mm:.8g}" for mm in geometry.to_mm([0, 0, i])]
            cosines = np.reshape(geometry.direction, (3, 3))
            ds.ImageOrientationPatient = [f"{cosine:.12g}" for cosine in (*cosines[:, 0], *cosines[:, 1])]
            ds.PixelSpacing = [geometry.spacing_zyx[1], geometry.spacing_zyx[2]]
            ds.Rows, ds.Columns, ds.SamplesPerPixel = *image.shape, 1
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
            ds.RescaleIntercept, ds.RescaleSlope = "-1024", "1"
            ds.PixelData = (image.astype(np.int32) + 1024).astype(np.uint16).tobytes()
            if edit:
                edit(i, ds)
            if after:
                after(ds)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ds.save_as(folder / name.format(i), enforce_file_format=True)
        return folder


def enhanced(path, hu, geometry, syntax=ExplicitVRLittleEndian, order=None, spoil=None, offset=1):
    """An enhanced CT of pydicom's making: all slices in one file, in any order."""
    order = list(order if order is not None else range(len(hu)))
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.PatientName, ds.Modality, ds.SeriesInstanceUID = "Canary^Patient", "CT", "1.2.3"
    ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2.4", "1.2.5"
    ds.NumberOfFrames, ds.Rows, ds.Columns, ds.SamplesPerPixel = len(hu), *hu.shape[1:], 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    cosines = np.reshape(geometry.direction, (3, 3))
    thickness, *in_plane = geometry.spacing_zyx

    def item(**values):
        made = pydicom.Dataset()
        for name, value in values.items():
            setattr(made, name, value)
        return made

    ds.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=cosines[:, :2].T.ravel().tolist())],
            PixelMeasuresSequence=[item(PixelSpacing=in_plane, SliceThickness=thickness)],
            CTImageFrameTypeSequence=[item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])],
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[f"{mm:.8g}" for mm in geometry.to_mm([0, 0, z])])],
            PixelValueTransformationSequence=[item(RescaleIntercept=-1024 - offset * z, RescaleSlope=1)],
        )
        for z in order
    ]
    stored = np.stack([hu[z].astype(np.int32) + 1024 + offset * z for z in order]).astype(np.uint16)
    ds.PixelData = stored.tobytes()
    if spoil:
        spoil(ds)
    if syntax == RLELossless:
        ds.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path.parent
