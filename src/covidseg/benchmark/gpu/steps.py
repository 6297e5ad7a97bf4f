"""A training step at the paper's size: ours, one change at a time; the peers' ways with the same network; all rows."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from covidseg.benchmark.contest import OTHER_OF_OURS, OURS, TUNED, USUAL
from covidseg.benchmark.gpu.clock import device, in_turns, milliseconds, peak_gigabytes, searching
from covidseg.benchmark.gpu.sheet import Sheet
from covidseg.benchmark.networks import all_rows
from covidseg.config.build import build_network
from covidseg.nets.cost import meta_network, multiply_adds
from covidseg.system.faults import is_out_of_memory
from covidseg.system.signals import StopRequest
from covidseg.training.parts import build_task

Step = Callable[[], Any]
_COLUMNS = {"milliseconds": ("ms", ",.1f"), "teraflops": ("TFLOP/s", ",.0f"), "share": ("of the matrix rate", ".1%")}
_CLIP = 12.0  # norm of the gradients, nnU-Net's


@dataclass(frozen=True)
class Way:
    """Somebody's way to make a step; `make` builds network, optimiser and data, and gives the step."""

    name: str
    kind: str
    make: Callable[[], Step]


def ways(options: DictConfig, rate: float) -> Sheet:
    """COVID-SegNet's step, ours and the peers' in turns, as milliseconds and as a share of the matrix rate."""
    floating = _floating(configured(options).model, options)
    steps: dict[str, Step] = {}
    rows: list[dict[str, Any]] = []
    told = []
    for way in _ways(options):
        try:
            steps[way.name] = way.make()
        except ImportError as error:
            told.append(f"{way.name}: not installed ({error.name}).")
            continue
        rows.append({"way": way.name, "kind": way.kind, "waits": _waits(steps[way.name])})
        rows[-1]["gigabytes"] = peak_gigabytes(steps[way.name])
    taken = in_turns(steps, int(options.rounds))
    own = taken[next(iter(steps))]
    for row in rows:
        mine = taken[row["way"]]
        row |= _rates(median(mine), floating, rate)
        row["ratio"] = median(one / ours for one, ours in zip(mine, own, strict=True))
    columns = {
        "way": ("", "s"),
        "kind": ("", "s"),
        **_COLUMNS,
        "ratio": ("against ours", ".2f"),
        "gigabytes": ("GB on top", ".1f"),
        "waits": ("host waits", "d"),
    }
    return Sheet(f"Training step: {_title(options)}, {floating / 1e12:.2f} TFLOP", columns, rows, told)


def compiled(options: DictConfig, rate: float) -> Sheet:
    """The same step compiled, ours and nnU-Net's, which compiles unless told not to; and what compiling takes."""
    floating = _floating(configured(options).model, options)
    rows: list[dict[str, Any]] = []
    for name, make in (
        ("covidseg", lambda: own_step(options)),
        ("covidseg, training.compile=true", lambda: own_step(options, "training.compile=true")),
        ("nnU-Net's way, compiled", lambda: _nnunet(options, compiles=True)),
    ):
        began = time.perf_counter()
        try:
            step = make()
            step()
        except ImportError as error:
            rows.append({"way": f"{name}: not installed ({error.name})"})
            continue
        first = time.perf_counter() - began
        taken = milliseconds(step, int(options.rounds))
        rows.append({"way": name, "first": first, **_rates(taken, floating, rate), "gigabytes": peak_gigabytes(step)})
    columns = {"way": ("", "s"), "first": ("first step, s", ".1f"), **_COLUMNS, "gigabytes": ("GB on top", ".1f")}
    return Sheet(f"Compiled: {_title(options)}", columns, rows)


def rows(options: DictConfig, rate: float, has_time: Callable[[], bool]) -> Sheet:
    """Every row of the tables, each network once."""
    seen: list[Any] = []
    found = []
    left_out = []
    for table, row in all_rows():
        if options.rows and f"{table}/{row}" not in options.rows:
            continue
        chosen = f"experiments/{table}={row}"
        model = OmegaConf.to_container(configured(options, chosen).model, resolve=True)
        if model in seen:
            continue
        if not has_time():
            left_out.append(f"{table}/{row}")
            continue
        seen.append(model)
        found.append({"row": f"{table}/{row}", **_row(options, chosen, rate)})
    columns = {"row": ("", "s"), **_COLUMNS, "gigabytes": ("GB on top", ".1f"), "wrong": ("", "s")}
    told = [f"No time for {', '.join(left_out)}."] if left_out else []
    title = f"Training step of each row, {options.batch_size} patches of {_size(options)}, automatic precision"
    return Sheet(title, columns, found, told)


def _row(options: DictConfig, chosen: str, rate: float) -> dict[str, Any]:
    try:
        step = own_step(options, chosen, precision="auto")
        taken = milliseconds(step, max(3, int(options.rounds) // 2))
        floating = _floating(configured(options, chosen).model, options)
        return {**_rates(taken, floating, rate), "gigabytes": peak_gigabytes(step)}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return {"wrong": "out of memory"}
    finally:
        if device().type == "cuda":
            torch.cuda.empty_cache()


def _ways(options: DictConfig) -> Iterator[Way]:
    """The first is ours as `train.py` runs it."""
    yield Way("covidseg", OURS, lambda: own_step(options))
    for name, overrides, more in (
        ("fused Adam", ["+optimizer.fused=true"], {}),
        ("contiguous memory", ["training.channels_last=false"], {}),
        ("no search for kernels", [], {"searches": False}),
        ("augment=strong", ["augment=strong"], {}),
        ("activations recomputed", ["model.checkpoint_activations=true"], {}),
        ("float16", [], {"precision": "16-mixed"}),
        ("float32 in TF32", [], {"precision": "32-true"}),
    ):
        yield Way(f"covidseg, {name}", OTHER_OF_OURS, _made(options, overrides, more))
    yield Way("nnU-Net's way", USUAL, lambda: _nnunet(options))
    yield Way("MONAI's way", USUAL, lambda: _monai(options, mixed=False))
    yield Way("MONAI's way, mixed precision", TUNED, lambda: _monai(options, mixed=True))


def _made(options: DictConfig, overrides: Sequence[str], more: dict[str, Any]) -> Callable[[], Step]:
    return lambda: own_step(options, *overrides, **more)


def own_step(options: DictConfig, *overrides: str, precision: str = "auto", searches: bool = True) -> Step:
    """A step of the suite's own module: the batch as the loader gives it, in pinned memory, to the updated weights."""
    cfg = configured(options, *overrides)
    module = build_task(cfg, StopRequest()).to(device()).train()
    optimizer = module.configure_optimizers()["optimizer"]
    image, mask = _patches(options)
    autocast = _autocast(precision)
    scaler = torch.amp.GradScaler(device().type, enabled=precision == "16-mixed" and device().type == "cuda")

    def step() -> Tensor:
        batch: Any = {"image": _sent(image), "mask": _sent(mask), "case": [], "step": 0, "part": 0}
        with searching(searches):
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = module.training_step(batch, 0)["loss"]
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss

    return step


def _nnunet(options: DictConfig, compiles: bool = False) -> Step:
    """nnU-Net 2.8's `train_step` around our network: float16, its loss, SGD, clipped gradients."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    network: Any = _network(options)
    if compiles:
        network, loss.dc = torch.compile(network), torch.compile(loss.dc)
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(device().type, enabled=device().type == "cuda")
    image, mask = _normalised(options)

    def step() -> Any:
        data, target = _sent(image), _sent(mask)
        with searching(True):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device().type, enabled=device().type == "cuda"):
                value = loss(network(data), target)
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
            scaler.step(optimizer)
            scaler.update()
        return value.detach().cpu().numpy()

    return step


def _monai(options: DictConfig, mixed: bool) -> Step:
    """The loop of MONAI's tutorials around our network: DiceCE, Adam, the loss to the host; float16 where `mixed`."""
    from monai.losses.dice import DiceCELoss

    network, loss = _network(options), DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    is_mixed = mixed and device().type == "cuda"
    scaler = torch.amp.GradScaler(device().type, enabled=is_mixed)
    image, mask = _normalised(options)

    def step() -> float:
        data, target = _sent(image), _sent(mask)
        with searching(False):
            optimizer.zero_grad()
            with torch.autocast(device().type, enabled=is_mixed):
                value = loss(network(data), target)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
        return float(value.item())

    return step


def _network(options: DictConfig) -> nn.Module:
    more = {} if options.width is None else {"width": options.width}
    return build_network(options.model, in_channels=1, out_channels=2, **more).to(device()).train()


def configured(options: DictConfig, *overrides: str) -> DictConfig:
    """The run of `train.py` at the suite's size, of `gpu.model` where `overrides` name no row of a table."""
    model = [] if any(one.startswith("experiments/") for one in overrides) else [f"model={options.model}"]
    width = [] if options.width is None else [f"model.width={options.width}"]
    sizes = [f"{key}={list(options.patch_size_zyx)}" for key in ("training.patch_size_zyx", "inference.roi_zyx")]
    return hydra.compose("train", [*model, *overrides, *width, *sizes, f"training.batch_size={options.batch_size}"])


def _floating(model: Any, options: DictConfig) -> float:
    """Floating-point operations of a step: forward once, backward twice, each multiply-add two."""
    return 6.0 * multiply_adds(meta_network(model), options.patch_size_zyx) * int(options.batch_size)


def _rates(taken: float, floating: float, rate: float) -> dict[str, float]:
    teraflops = floating / taken / 1e9
    return {"milliseconds": taken, "teraflops": teraflops, "share": teraflops / rate}


def _patches(options: DictConfig) -> tuple[Tensor, Tensor]:
    """int16 HU and uint8 labels (B, 1, D, H, W) as the loader gives them."""
    rng = torch.Generator().manual_seed(0)
    shape = (int(options.batch_size), 1, *options.patch_size_zyx)
    image = torch.randint(-1024, 400, shape, generator=rng, dtype=torch.int16)
    mask = (torch.rand(shape, generator=rng) > 0.9).to(torch.uint8) * 2
    return _pinned(image), _pinned(mask)


def _normalised(options: DictConfig) -> tuple[Tensor, Tensor]:
    """float32 and int16 as the peers' loaders give them."""
    image, mask = _patches(options)
    return _pinned((image.float() + 1250) / 1500), _pinned((mask > 0).to(torch.int16))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if device().type == "cuda" else tensor


def _sent(tensor: Tensor) -> Tensor:
    return tensor.to(device(), non_blocking=True)


def _autocast(precision: str) -> Callable[[], Any]:
    """As Lightning's plugins do it; on the CPU, where this is a rehearsal, float32."""
    if device().type != "cuda" or precision == "32-true":
        return nullcontext
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return lambda: torch.autocast("cuda", dtype)


def _waits(step: Step) -> int | None:
    """How often the host waits for the device in a step; None where nobody counts them."""
    if device().type != "cuda":
        return None
    step()  # what is sent once is there
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(one.message) for one in heard)


def _title(options: DictConfig) -> str:
    width = "full width" if options.width is None else f"width {options.width}"
    return f"{options.model}, {width}, {options.batch_size} patches of {_size(options)}"


def _size(options: DictConfig) -> str:
    z, y, x = options.patch_size_zyx
    return f"{x} x {y} x {z}"
