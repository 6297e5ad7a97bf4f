"""MONAI's DynUNet in a plain loop, as its tutorials write one: cached transforms, random crops, SGD with poly decay."""

import sys
import time
from functools import partial
from typing import Any

from covidseg.benchmark.versus.job import Clock, Job, leave

_LR, _POWER, _OVERLAP = 1e-2, 0.9, 0.5


def run(job: Job) -> None:
    """Read, train, predict."""
    import torch
    from monai.data import CacheDataset, list_data_collate
    from monai.losses import DiceCELoss
    from monai.utils import set_determinism

    set_determinism(job.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    fixed, drawn = _transforms(job)
    files = [{"image": str(job.image(case)), "label": str(job.label(case))} for case in job.train]
    cases = CacheDataset(files, fixed, num_workers=None, progress=False)
    preparing = time.perf_counter() - began
    width = job.width_of(partial(_meta, job))
    network = _network(job, width).to(device)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.SGD(network.parameters(), _LR, momentum=0.99, weight_decay=3e-5, nesterov=True)
    clock = Clock(job.minutes)
    network.train()
    order: list[int] = []
    for share in clock:
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1 - share) ** _POWER
        picked = []
        for _ in range(job.batch_size):
            order = order or torch.randperm(len(cases)).tolist()
            picked += drawn(cases[order.pop()])
        batch = list_data_collate(picked)
        optimizer.zero_grad(set_to_none=True)
        heads = network(batch["image"].to(device)).unbind(1)  # deep supervision
        target = batch["label"].to(device)
        weights = [0.5**level for level in range(len(heads))]
        total = sum(weight * loss(head, target) for weight, head in zip(weights, heads, strict=True)) / sum(weights)
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        clock.log(float(total))
    seconds = clock.passed
    began = time.perf_counter()
    _predict(job, network, fixed, device)
    leave(
        job,
        clock.losses,
        batch_size=job.batch_size,
        seconds=seconds,
        preparing=preparing,
        predicting=time.perf_counter() - began,
        what=f"{list(job.spacing_zyx)} mm, patch {list(job.patch_size_zyx)}, batch {job.batch_size}, "
        f"{width} filters at the top",
    )


def _transforms(job: Job) -> tuple[Any, Any]:
    """(what is done once, what is drawn anew each time); arrays are (x, y, z), as nibabel reads them."""
    from monai import transforms as mt

    both, low, high = ("image", "label"), *job.window
    fixed = mt.Compose([
        mt.LoadImaged(both, image_only=False),
        mt.EnsureChannelFirstd(both),
        mt.Orientationd(both, axcodes="RAS", labels=None),
        mt.Spacingd(both, pixdim=job.spacing_zyx[::-1], mode=("bilinear", "nearest")),
        mt.ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True),
        mt.CropForegroundd(both, source_key="image", allow_smaller=True),
    ])  # fmt: skip
    patch = job.patch_size_zyx[::-1]
    drawn = mt.Compose([
        mt.SpatialPadd(both, patch),
        mt.RandCropByPosNegLabeld(both, "label", patch, pos=1, neg=1, num_samples=1, image_key="image"),
        mt.RandFlipd(both, prob=0.5, spatial_axis=0),
        mt.RandScaleIntensityd("image", factors=0.1, prob=0.5),
        mt.RandShiftIntensityd("image", offsets=0.1, prob=0.5),
    ])  # fmt: skip
    return fixed, drawn


def _network(job: Job, width: int) -> Any:
    from monai.networks.nets import DynUNet

    levels = 1
    while min(job.patch_size_zyx) // 2**levels >= 4 and levels < 5:
        levels += 1
    strides = [1] + [2] * (levels - 1)
    filters = [min(320, width * 2**level) for level in range(levels)]
    return DynUNet(
        3, 1, 2, [3] * levels, strides, strides[1:], filters, deep_supervision=levels > 2, deep_supr_num=levels - 2
    )


def _meta(job: Job, width: int) -> Any:
    import torch

    with torch.device("meta"):
        return _network(job, width).eval()


def _predict(job: Job, network: Any, fixed: Any, device: Any) -> None:
    import numpy as np
    import SimpleITK as sitk
    import torch
    from monai import transforms as mt
    from monai.inferers import sliding_window_inference

    network.eval()
    image_only = mt.Compose([one for one in fixed.transforms if one.keys != ("label",)])
    for transform in image_only.transforms:
        transform.allow_missing_keys = True
    back = mt.Invertd("prediction", image_only, orig_keys="image", nearest_interp=False, to_tensor=True)
    job.masks.mkdir(exist_ok=True)
    for case in job.test:
        found = image_only({"image": str(job.image(case))})
        with torch.inference_mode():
            windows = (found["image"][None].to(device), job.patch_size_zyx[::-1], 2, network, _OVERLAP)
            logits = sliding_window_inference(*windows, mode="gaussian")[0].cpu()
        found["prediction"] = logits.softmax(0)[1:]
        native = back(found)["prediction"][0].numpy() > 0.5  # (x, y, z)
        scan = sitk.ReadImage(str(job.image(case)))
        mask = sitk.GetImageFromArray(np.ascontiguousarray(native.T).astype(np.uint8))
        mask.CopyInformation(scan)
        sitk.WriteImage(mask, str(job.masks / f"{case}.nii.gz"), useCompression=True)


if __name__ == "__main__":
    run(Job.load(sys.argv[1]))
