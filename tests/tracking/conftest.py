"""An independent reader of wandb's offline files, and a small configuration with secrets in it."""

import json
import struct
from pathlib import Path

import pytest
from omegaconf import OmegaConf

BLOCK, HEADER = 32768, 7
SECRET = "canary-5f2d9c"


def _records(path: Path):
    """Records of a .wandb file: a LevelDB log (32 KB blocks of crc, length, type, chunk) of protobuf messages."""
    from wandb.proto import wandb_internal_pb2 as pb

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, message = HEADER, b""
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        if kind == 0:
            position += left
            continue
        chunk = content[position + HEADER : position + HEADER + length]
        if len(chunk) < length:
            return  # the torn end of a killed run
        position += HEADER + length
        message = chunk if kind in (1, 2) else message + chunk
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(message)
            yield record


def read_run(path: Path) -> dict:
    """What a .wandb file says about its run: identity, config, history rows, summary, artifacts, exit code."""
    run = {"config": {}, "history": [], "summary": {}, "artifacts": [], "exit": None, "preempting": False}
    run |= {"best": {}}

    def items(entries):
        return {("/".join(entry.nested_key) or entry.key): json.loads(entry.value_json) for entry in entries}

    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            head = record.run
            run |= {"id": head.run_id, "name": head.display_name, "group": head.run_group, "job_type": head.job_type}
            run |= {"tags": list(head.tags), "project": head.project, "host": head.host}
            run["config"].update(items(head.config.update))
        elif kind == "config":
            run["config"].update(items(record.config.update))
        elif kind == "history":
            run["history"].append(items(record.history.item))
        elif kind == "summary":
            run["summary"].update(items(record.summary.update))
        elif kind == "artifact":
            artifact = record.artifact
            files = [entry.path for entry in artifact.manifest.contents]
            told = {"name": artifact.name, "type": artifact.type, "files": files, "aliases": list(artifact.aliases)}
            run["artifacts"].append(told | {"metadata": json.loads(artifact.metadata or "{}")})
        elif kind == "metric" and record.metric.name:
            run["best"][record.metric.name] = "max" if record.metric.summary.max else "min"
        elif kind == "preempting":
            run["preempting"] = True
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


@pytest.fixture
def offline_runs():
    """All offline runs below a folder, oldest first, as dictionaries."""
    import wandb

    def read(folder: Path) -> list[dict]:
        wandb.teardown()  # its service writes the last records after `finish` has returned, as at the end of a process
        return [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]

    return read


@pytest.fixture
def cfg(monkeypatch):
    """A run's configuration with a secret in each place where one may stand; no key, no network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("CANARY", SECRET)
    yield OmegaConf.create(
        {
            "name": "table2",
            "seed": 0,
            "task": {"name": "lesion", "out_channels": 2, "structures": {"lesion": {"channels": [1]}}},
            "model": {"_target_": "covidseg.nets.unet3d.UNet3D", "width": 8, "out_channels": "${task.out_channels}"},
            "optimizer": {"lr": 1e-4, "note": "${oc.env:CANARY}", "again": "${optimizer.note}"},
            "paths": {"data": f"/srv/{SECRET}/data"},
            "data": {"name": "folder", "root": f"patients/{SECRET}", "weights": f"/srv/{SECRET}/w.ckpt"},
            "api_key": SECRET,
            "logger": {
                "backend": "wandb",
                "mode": "offline",
                "project": "covidseg",
                "entity": None,
                "group": "${name}",
                "job_type": "train",
                "tags": ["extra"],
                "overlays": 1,
                "timeout_s": 20,
            },
        }
    )
    import wandb

    wandb.teardown()  # its service keeps the working directory of the test that started it
