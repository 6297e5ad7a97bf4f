"""nnU-Net v2 with minutes in place of epochs: its own fingerprint, plan, preprocessing, trainer and predictor.

`nnunet` takes its plan as it is, and the learning rate of its thousand epochs, of which it sees the beginning.
`nnunet_ours` takes our voxel size, patch and batch, as many features as cost our network's multiply-adds, and a
learning rate that reaches zero when the minutes end. Both give the time of a training step to nothing else: no
validation in between.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from covidseg.benchmark.versus.export import NAME
from covidseg.benchmark.versus.job import Clock, Job, leave
from covidseg.system.files import read_json, write_json

CONFIGURATION, PREPROCESSED = "3d_fullres", "preprocessed"
STEPS = 1000 * 250  # of nnU-Net's own training
_LR, _POWER = 1e-2, 0.9


def run(job: Job) -> None:
    """Plan, preprocess, train, predict."""
    folder = Path(job.folder)
    places = {"raw": Path(job.scans).parent, "preprocessed": folder / PREPROCESSED, "results": folder / "results"}
    for name, place in places.items():
        os.environ[f"nnUNet_{name}"] = str(place)
        place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("nnUNet_def_n_proc", str(len(os.sched_getaffinity(0))))  # its 8 threads are too many for 2
    began = time.perf_counter()
    _plan(job)
    preparing = time.perf_counter() - began
    trainer = _trainer(job)
    clock = _train(job, trainer)
    seconds = clock.passed
    batch = trainer.configuration_manager.batch_size
    began = time.perf_counter()
    _predict(job, trainer)
    predicting = time.perf_counter() - began
    features = trainer.configuration_manager.network_arch_init_kwargs["features_per_stage"]
    patch = trainer.configuration_manager.patch_size
    leave(
        job,
        clock.losses,
        batch_size=batch,
        seconds=seconds,
        preparing=preparing,
        predicting=predicting,
        what=f"{[round(mm, 2) for mm in trainer.configuration_manager.spacing]} mm, patch {list(patch)}, "
        f"batch {batch}, {features[0]} to {features[-1]} features",
    )


def _plan(job: Job) -> None:
    """Fingerprint, plan and preprocessed files of all cases, as nnU-Net makes them before a cross-validation."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    api.extract_fingerprints([1], num_processes=1, verbose=False, show_progress_bar=False)
    ours = job.contender == "nnunet_ours"
    spacing = job.spacing_zyx if ours else None
    api.plan_experiments([1], overwrite_target_spacing=spacing)
    plans = Path(job.folder) / PREPROCESSED / NAME / "nnUNetPlans.json"
    content = read_json(plans)
    if ours:
        _cut(content["configurations"][CONFIGURATION], job)
        write_json(plans, content)
    api.preprocess([1], configurations=(CONFIGURATION,), num_processes=(1,), verbose=False, show_progress_bar=False)
    split = {"train": list(job.train), "val": list(job.test)}  # its validation set is looked at by nobody
    write_json(plans.parent / "splits_final.json", [split])


def _cut(plan: dict[str, Any], job: Job) -> None:
    """Our patch, batch and multiply-adds in nnU-Net's plan, by its own rules for stages and kernels."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props(job.spacing_zyx, job.patch_size_zyx, 4, 999999)
    stages = len(strides)
    arguments = plan["architecture"]["arch_kwargs"]
    arguments |= {
        "n_stages": stages,
        "strides": [list(map(int, stride)) for stride in strides],
        "kernel_sizes": [list(map(int, kernel)) for kernel in kernels],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }

    def of_width(width: int) -> Any:
        arguments["features_per_stage"] = [min(320, width * 2**stage) for stage in range(stages)]
        return _network(plan)

    of_width(job.width_of(of_width))
    plan |= {"patch_size": list(job.patch_size_zyx), "batch_size": job.batch_size}


def _network(plan: dict[str, Any]) -> Any:
    """The plan's network, without memory."""
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plan["architecture"]
    names = (architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"])
    with torch.device("meta"):
        network = get_network_from_plans(*names, 1, 2, deep_supervision=False)
    network.in_channels = 1
    return network


def _trainer(job: Job) -> Any:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    base = Path(job.folder) / PREPROCESSED / NAME
    plans = {**read_json(base / "nnUNetPlans.json"), "continue_training": False}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.environ.setdefault("nnUNet_n_proc_DA", "0")  # the cores are the training's: no processes beside it
    os.environ.setdefault("nnUNet_compile", "f")
    torch.manual_seed(job.seed)
    trainer = nnUNetTrainer(plans, CONFIGURATION, 0, read_json(Path(job.scans) / "dataset.json"), device)
    trainer.disable_checkpointing = True
    trainer.on_train_start()
    return trainer


def _train(job: Job, trainer: Any) -> Clock:
    clock = Clock(job.minutes)
    trainer.network.train()
    for share in clock:
        passed = len(clock.losses) / STEPS if job.contender == "nnunet" else share
        for group in trainer.optimizer.param_groups:
            group["lr"] = _LR * (1 - passed) ** _POWER
        clock.log(float(trainer.train_step(next(trainer.dataloader_train))["loss"]))
    return clock


def _predict(job: Job, trainer: Any) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    job.masks.mkdir(exist_ok=True)
    files = [[str(job.image(case))] for case in job.test]
    names = [str(job.masks / case) for case in job.test]
    predictor.predict_from_files_sequential(files, names)
    for rest in job.masks.glob("*.json"):
        rest.unlink()


if __name__ == "__main__":
    run(Job.load(sys.argv[1]))
