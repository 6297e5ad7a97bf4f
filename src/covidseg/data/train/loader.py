"""The training loader: threads that crop patches out of memory-mapped cases ahead of the device.

Threads, because the crop is one copy that releases the interpreter lock: a worker process would spend more on handing
the patch over than on cutting it, and needs shared memory that containers are short of. What leaves here is int16 and
uint8; windowing and augmentation happen in batches on the device.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypedDict

import torch

from covidseg.data.train.patches import PatchSampler


class Batch(TypedDict):
    """One step's patches of one rank, or a part of them where gradients are accumulated."""

    image: torch.Tensor  # int16 HU (B, 1, D, H, W)
    mask: torch.Tensor  # uint8 stored labels (B, 1, D, H, W)
    case: list[str]  # ids, for messages
    step: int  # which step of the run this batch belongs to
    part: int  # and which of the batches whose gradients make this step


class PatchLoader:
    """Iterates over the batches of steps `start` to `max_steps - 1` and can go on at any step (`load_state_dict`).

    A step counts as done when the next one's first batch is asked for, so a state saved between `on_train_batch_start`
    and the training step of step k says k. `device` decides whether batches lie in pinned memory.
    """

    def __init__(
        self, sampler: PatchSampler, max_steps: int, threads: int, prefetch: int, device: torch.device | None = None
    ):
        self.sampler, self.max_steps = sampler, max_steps
        self.threads, self.prefetch = max(threads, 1), max(prefetch, 1)
        self.device = device if device is not None and device.type == "cuda" else None
        self.step = 0

    def __len__(self) -> int:
        return self.max_steps * self.sampler.parts

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing runs before the first `next`, so the `iter` that Lightning calls early starts no thread.
        pool = ThreadPoolExecutor(self.threads, "patches", initializer=self._enter_thread)
        try:
            places = iter(range(self.step * self.sampler.parts, len(self)))
            ahead = deque(pool.submit(self.load, place) for place in islice(places, self.prefetch))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(self.load, place) for place in islice(places, 1))
                yield batch
                self.step = batch["step"] + (batch["part"] + 1 == self.sampler.parts)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def load(self, place: int) -> Batch:
        """The batch in this place of the run, from 0."""
        step, part = divmod(place, self.sampler.parts)
        shape = (self.sampler.batch_size, 1, *self.sampler.size_zyx)
        image = torch.empty(shape, dtype=torch.int16, pin_memory=self.device is not None)
        mask = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device is not None)
        case = self.sampler.batch(step, image.numpy(), mask.numpy(), part)
        return Batch(image=image, mask=mask, case=case, step=step, part=part)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])

    def _enter_thread(self) -> None:
        if self.device is not None:  # pinned memory belongs to the thread's current device, which is GPU 0 by default
            torch.cuda.set_device(self.device)
