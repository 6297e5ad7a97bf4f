"""What the device can do at most: bytes moved, products of matrices."""

import torch
from omegaconf import DictConfig

from covidseg.benchmark.gpu.clock import device, milliseconds
from covidseg.benchmark.gpu.sheet import Sheet

_ROUNDS = 10


def measured(options: DictConfig) -> Sheet:
    """Random numbers, several times the cache; a copy counts what it reads and what it writes."""
    rows = [{"what": "copy", "gigabytes": _copy(int(options.copy_megabytes))}]
    rows += [
        {"what": f"matrix product, {name}", "teraflops": _product(int(options.matrix), dtype, tf32)}
        for name, dtype, tf32 in (
            ("bfloat16", torch.bfloat16, False),
            ("float16", torch.float16, False),
            ("TF32", torch.float32, True),
            ("float32", torch.float32, False),
        )
    ]
    return Sheet("Ceilings", {"what": ("", "s"), "gigabytes": ("GB/s", ",.0f"), "teraflops": ("TFLOP/s", ",.1f")}, rows)


def matrix_rate(sheet: Sheet) -> float:
    """TFLOP/s of bfloat16, of which a training step is a share."""
    return next(float(row["teraflops"]) for row in sheet.rows if row["what"].endswith("bfloat16"))


def _copy(megabytes: int) -> float:
    source = torch.rand(megabytes * 2**20 // 4, device=device())
    target = torch.empty_like(source)
    taken = milliseconds(lambda: target.copy_(source), _ROUNDS)
    return 2 * source.nbytes / taken / 1e6


def _product(size: int, dtype: torch.dtype, tf32: bool) -> float:
    left, right = (torch.randn(size, size, device=device(), dtype=torch.float32).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        taken = milliseconds(lambda: left @ right, _ROUNDS)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / taken / 1e9
