"""How a table was made, in the words and commands that a paper's methods section and a reader's shell need."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from covidseg.config.plain import leaves
from covidseg.evaluation.comparison import OF_METHODS
from covidseg.evaluation.metrics import METRICS
from covidseg.report.cells import ABSENT
from covidseg.report.collect import Run, TableResults
from covidseg.report.section import Section
from covidseg.report.table import Block
from covidseg.runs.folder import last_attempt
from covidseg.system.scrub import scrubbed

_NOT_A_DIFFERENCE = ("name", "row", "seed", "fold", "task", "logger", "resume", "dry_run", "debug", "trainer")
_SWEPT = ("experiments/", "task", "seed", "fold")  # options in which the runs of one sweep may differ


def methods(results: TableResults, blocks: Sequence[Block]) -> Section:
    """A paragraph on data, training, protocol and statistics, to be cut down rather than made up."""
    configs = [_config(run) for run in results.finished]
    config: Mapping[str, Any] = next((one for one in configs if one), {})
    sentences = [
        *_data(results),
        *_training(config),
        *_evaluation(config, blocks),
        *_statistics(blocks),
        *_versions(results),
    ]
    return Section("Methods, in words", notes=[" ".join(sentences)] if results.finished else ["No run is finished."])


def reproduce(results: TableResults) -> Section:
    """The commands that made the runs, and in which options their rows differ."""
    commits = _distinct(results.finished, _commit)
    lines = [f"git checkout {commit}" for commit in commits[:1]]
    lines += [*_commands(results.finished), f"python src/report.py table={results.table}"]
    notes = []
    if len(commits) > 1:
        notes.append(f"The runs were made by several states of the code: {', '.join(commits)}.")
    rows = _differences(results)
    header = ["option", "row: value"] if rows else []
    return Section("To reproduce it", header, rows, notes, code="\n".join(lines) if results.finished else "")


def provenance(results: TableResults) -> Section:
    """Data, code, devices, versions and hours of the finished runs."""
    data = _distinct(results.finished, _data_hash)
    facts = {
        "data": data,
        "code": _distinct(results.finished, _commit),
        "device": _distinct(results.finished, _device),
        "versions": _distinct(results.finished, _version_text),
        "hours": _hours(results.finished),
    }
    rows = [["runs", f"{len(results.finished)} finished, {len(results.unfinished)} not"]]
    if results.not_scored:
        rows.append(["left out", f"{len(results.not_scored)} trained on every case (fold=all), not scored"])
    rows += [[name, "; ".join(values) or ABSENT] for name, values in facts.items()]
    warning = "These runs were trained on different prepared data: their numbers must not be compared."
    return Section("What made these numbers", ["", ""], rows, [warning] if len(data) > 1 else [])


def _data(results: TableResults) -> Iterator[str]:
    counts = [run.manifest["cases"] for run in results.finished if isinstance(run.manifest.get("cases"), Mapping)]
    if data := _distinct(results.finished, _data_hash):
        yield f"Data: {'; '.join(data)} (name and hash of the prepared cases)."
    if counts:
        named = ", ".join(f"{number} for {name}" for name, number in counts[0].items() if number)
        yield f"Cases of a run: {named}; no patient is on two sides."


def _training(config: Mapping[str, Any]) -> Iterator[str]:
    training, optimizer = config.get("training") or {}, config.get("optimizer") or {}
    if not training or not optimizer:
        return
    spacing, patch = (_sizes(value) for value in (config["data"]["spacing_zyx"], training["patch_size_zyx"]))
    yield f"Scans were resampled to {spacing} mm (z, y, x) and cropped to the body."
    yield (
        f"Each network was trained for {training['max_steps']} steps of {training['batch_size']} patches of {patch} "
        f"voxels, {training['foreground_probability']:.0%} of them around foreground, with {_class(optimizer)} "
        f"(learning rate {optimizer['lr']:g}), loss {_class(config['loss'])}, augmentation "
        f"{_transforms(config['augment'])}; the {training['evaluate']} checkpoint was scored."
    )


def _evaluation(config: Mapping[str, Any], blocks: Sequence[Block]) -> Iterator[str]:
    if inference := config.get("inference"):
        yield (
            f"Whole scans were segmented by windows of {_sizes(inference['roi_zyx'])} voxels that overlap by "
            f"{inference['overlap']:.0%}, and scored on their own grid: "
            f"{', '.join(metric.title for metric in METRICS)}."
        )
    for text in dict.fromkeys(
        f"{block.set} set, {block.structure}: {block.protocol}" for block in blocks if block.protocol
    ):
        yield f"Protocol, {text}."


def _statistics(blocks: Sequence[Block]) -> Iterator[str]:
    compared = [one for block in blocks for one in block.comparisons]
    yield "Scores of a case were averaged over its runs; intervals of means are bootstrap intervals over patients."
    if any(one.of == OF_METHODS and max(one.seeds) > 1 for one in compared):
        seeds = sorted({count for one in compared for count in one.seeds})
        yield (
            f"Methods were compared with {' or '.join(map(str, seeds))} seeds each by a mixed model with patients and "
            "seeds as random factors (Obuchowski and Rockette 1995, seeds nested in methods; Satterthwaite's df)."
        )
    if any(max(one.seeds) == 1 or one.of != OF_METHODS for one in compared):
        yield "Trained networks were compared by sign-flip permutation of the patients' paired differences."
    if compared:
        yield "p values were corrected by Holm's method within each set and structure."


def _versions(results: TableResults) -> Iterator[str]:
    if versions := _distinct(results.finished, _version_text):
        yield f"Software: {'; '.join(versions)}."


def _commands(runs: Sequence[Run]) -> list[str]:
    """One sweep where the runs are all combinations of what differs between them, else a line for each run."""
    given = [_arguments(run) for run in runs]
    given = [arguments for arguments in given if arguments]
    fixed = {tuple(sorted(_not_swept(own))) for own in given}
    swept = [tuple(one for one in own if one.startswith(_SWEPT)) for own in given]
    keys = {tuple(one.partition("=")[0] for one in own) for own in swept}
    if len(fixed) == len(keys) == 1 and len(given) > 1:
        values = [list(dict.fromkeys(column)) for column in zip(*(_values(own) for own in swept), strict=True)]
        combinations = 1
        for column in values:
            combinations *= len(column)
        if combinations == len(set(swept)):
            options = [f"{key}={','.join(column)}" for key, column in zip(next(iter(keys)), values, strict=True)]
            return [f"python src/train.py -m {shlex.join([*options, *_not_swept(given[0])])}"]
    return list(dict.fromkeys(f"python src/train.py {shlex.join(own)}" for own in given))


def _not_swept(options: Sequence[str]) -> list[str]:
    return [option for option in options if not option.startswith(_SWEPT)]


def _values(options: Sequence[str]) -> list[str]:
    return [option.partition("=")[2] for option in options]


def _arguments(run: Run) -> list[str]:
    command = last_attempt(run.manifest).get("command")
    return [str(one) for one in command[1:]] if isinstance(command, Sequence) and not isinstance(command, str) else []


def _differences(results: TableResults) -> list[list[str]]:
    """[option, values by row] of every option in which the rows' first runs differ."""
    of_row: dict[str, dict[str, Any]] = {}
    for run in results.finished:
        if run.row not in of_row and (config := _config(run)):
            of_row[run.row] = dict(leaves(config))
    keys = sorted({key for own in of_row.values() for key in own if not key.startswith(_NOT_A_DIFFERENCE)})
    rows = []
    for key in keys:
        values: dict[str, list[str]] = {}
        for row, own in of_row.items():
            values.setdefault(_short(own.get(key, ABSENT)), []).append(row)
        if len(values) > 1 and key.rpartition(".")[2] != "_partial_":
            rows.append([key, "; ".join(f"{' '.join(names)}: {value}" for value, names in values.items())])
    return rows


def _config(run: Run) -> dict[str, Any]:
    return scrubbed(run.config) if run.config else {}


def _short(value: Any) -> str:
    """A class by its own name."""
    return str(value).rpartition(".")[2] if str(value).startswith("covidseg.") else str(value)


def _class(section: Mapping[str, Any]) -> str:
    return str(section.get("_target_", ABSENT)).rpartition(".")[2]


def _transforms(section: Mapping[str, Any]) -> str:
    return ", ".join(str(key).replace("_", " ") for key in section if key != "_target_") or "none"


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _hours(runs: Sequence[Run]) -> list[str]:
    """Of training and of everything, over all runs that say so."""
    trained = sum(run.train_seconds or 0 for run in runs)
    whole = sum(sum(parts.values()) for run in runs if isinstance(parts := run.metrics.get("seconds"), Mapping))
    return [f"{trained / 3600:.2f} of training, {whole / 3600:.2f} in all"] if trained else []


def _distinct(runs: Sequence[Run], what: Callable[[Mapping[str, Any]], str]) -> list[str]:
    return [text for text in dict.fromkeys(what(run.manifest) for run in runs) if text]


def _data_hash(manifest: Mapping[str, Any]) -> str:
    data = manifest.get("data") or {}
    return f"{data.get('name', '')} {data['hash']}".strip() if "hash" in data else ""


def _commit(manifest: Mapping[str, Any]) -> str:
    git = last_attempt(manifest).get("git") or {}
    return f"{git['commit'][:12]}{' (changed)' if git.get('dirty') else ''}" if "commit" in git else ""


def _device(manifest: Mapping[str, Any]) -> str:
    attempt = last_attempt(manifest)
    return f"{attempt.get('processes', 1)} x {attempt['device']}" if "device" in attempt else ""


def _version_text(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in (last_attempt(manifest).get("versions") or {}).items())
