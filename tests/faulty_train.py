"""`train.py` with a fault: FAULT="<rank>:<step>:<what>", what one of raise, nan, kill, term, stop, oom, hang.

A script of its own, because a run starts its other processes by the command that started it.
"""

import os
import signal
import time

import pytorch_lightning as pl


class Fault(pl.Callback):
    def __init__(self, rank, step, what):
        self.rank, self.step, self.what = int(rank), int(step), what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank != self.rank or trainer.global_step != self.step:
            return
        if self.what == "raise":
            raise RuntimeError("the fault that the test asked for")
        if self.what == "oom":
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        if self.what == "nan":
            pl_module.loss.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        if self.what == "hang":
            time.sleep(600)
        if self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.what in ("kill", "term", "group"):
            target = 0 if self.what == "group" else os.getpid()
            os.kill(target, signal.SIGKILL if self.what == "kill" else signal.SIGTERM)


if __name__ == "__main__":
    if fault := os.environ.get("FAULT"):
        from covidseg import tracking

        original = tracking.callbacks
        tracking.callbacks = lambda cfg: [*original(cfg), Fault(*fault.split(":"))]

    from covidseg.cli.train import main

    main()
