"""A small application of the same shape as train.py: it only writes its run folder, and ends as its row says."""

import json
import os
import signal
import sys
import time

import hydra

from covidseg.cli.app import one_line_errors
from covidseg.runs.folder import RunFolder, run_dir


def main(cfg):
    rank = int(os.environ.get("SLURM_PROCID", 0))
    folder = RunFolder(run_dir(cfg))
    if rank:
        (folder.path / f"rank{rank}").write_text(os.environ["SLURM_NTASKS"])
        return
    with folder.lock():
        folder.claim(cfg)
        stop = []
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, lambda signum, frame: stop.append(signum))
        first = (folder.status or {}).get("step", 0)
        with open(folder.path / "starts", "a") as stream:
            stream.write(f"{first}\n")
        match cfg.trainer.mode:
            case "raises":
                sys.exit("error: this row cannot be trained")
            case "exits early":
                sys.exit(0)
            case "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
        for step in range(first, cfg.training.max_steps):
            folder.write_status("running", step=step, devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
            time.sleep(cfg.trainer.pause)
            if stop:
                folder.write_status("interrupted")
                sys.exit(128 + stop[0])
        sets = {} if cfg.trainer.mode == "scores nothing" else {"test": {"lesion": {"n": 1}}}
        (folder.path / "metrics.json").write_text(json.dumps({"sets": sets}))
        folder.write_status("finished", step=cfg.training.max_steps)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with one_line_errors(False):
        hydra.main(version_base="1.3", config_path=os.path.abspath("conf"), config_name="train")(main)()
