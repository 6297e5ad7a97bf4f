"""`python src/predict.py`: lung and lesion masks on a scan's own grid, with the clinical figures beside them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from covidseg.cli.app import application
from covidseg.config.options import switch
from covidseg.config.plain import as_dict
from covidseg.system.devices import slow_precision
from covidseg.system.errors import BadInput, CovidSegError, EnvironmentFault
from covidseg.system.signals import terminable
from covidseg.system.terminal import window_progress


@application("predict")
def main(cfg: DictConfig) -> None:
    """Segment every scan at `input`; a scan that is refused does not stop the others."""
    from covidseg.inference.batch import FAILURES, Predictor
    from covidseg.inference.output_folder import OutputFault
    from covidseg.inference.pipeline import predicted
    from covidseg.inference.quantify import NOTICE
    from covidseg.inference.segmenter import by_structures, load
    from covidseg.scans.read import find_scans

    console = Console(soft_wrap=True, highlight=False, markup=False)
    reading = {key: value for key, value in as_dict(cfg.reading).items() if value is not None}
    runs = list(cfg.run) if isinstance(cfg.run, ListConfig) else [cfg.run]
    if not runs or None in runs or None in (cfg.input, cfg.output):
        option = next((name for name in ("input", "output") if cfg[name] is None), "run")
        raise BadInput(option, "is empty", f"{option}=<{'run folder' if option == 'run' else 'path'}>")
    overwrite, recursive = switch(cfg, "overwrite"), switch(cfg.reading, "recursive", "reading.recursive")
    maps, page = switch(cfg, "probabilities"), _page if switch(cfg, "report") else None
    given = Path(str(cfg.input))
    sources = find_scans(given, recursive, reading.get("series"))
    inference = inference_options(cfg.inference)
    segmenters = by_structures([load(str(run), cfg.checkpoint, cfg.device, **inference) for run in runs])
    predictor = Predictor(
        segmenters, str(cfg.output), cfg.extension, cfg.consolidation_hu, overwrite, reading, maps, page
    )
    predictor.check(sources, given, sources.deep)
    for line in (*_averaged(segmenters), *_slow(segmenters), *_passed_over(sources)):
        console.print(line)

    done, failures = [], {}
    began = time.perf_counter()
    outcomes = predicted(predictor, sources, lambda: window_progress(console))
    with terminable("predict"):
        try:
            with closing(outcomes):
                for number, (source, result) in enumerate(outcomes, start=1):
                    if isinstance(result, Exception):
                        if isinstance(result, OutputFault) or len(sources) == 1 or cfg.debug:
                            raise result  # an output fault would meet the next scan too
                        failures[source.id] = _refusal(source.id, result)
                        console.print(f"{number}/{len(sources)} {failures[source.id]}", style="red")
                        continue
                    done.append(result)
                    console.print(f"{number}/{len(sources)} {result.case}: {_line(result)}")
                    for note in result.notes:
                        console.print(f"    note: {note}")
        except BaseException:
            if failures or predictor.has_begun:
                with suppress(CovidSegError):  # what ended the call is the news
                    predictor.finish(failures, complete=False)
            raise
        predictor.finish(failures)

    fresh = [result.seconds for result in done if not result.resumed]
    if fresh:
        device = next(segmenters[0].network.parameters()).device
        each = (time.perf_counter() - began) / len(fresh)
        console.print(f"{len(fresh)} scans segmented, {each:.1f} s per scan on {device.type}")
    console.print(NOTICE)
    if failures:
        wrong = f"{len(failures)} of {len(sources)} scans were refused"
        environment = any(isinstance(error, EnvironmentFault) for error in failures.values())
        kind = EnvironmentFault if environment else BadInput
        raise kind("input", wrong, f"{FAILURES} in the output folder says why")


def _page(segmented: Any, notes: Sequence[str]) -> str:
    """The page of a scan that was segmented just now."""
    from covidseg.report.viewer.scan import scan_page

    scan = segmented.opened.scan
    return scan_page(segmented.opened.source.id, scan.voxels, scan.geometry, segmented.masks, segmented.figures, notes)


def inference_options(config: DictConfig) -> dict[str, Any]:
    """The `inference` section of a command as arguments of `covidseg.load`: what is null stays as in the run."""
    options = {str(key): value for key, value in config.items() if key != "whole" and value is not None}
    options["postprocess"] = switch(config, "postprocess", "inference.postprocess")
    return {**options, "roi_zyx": None} if switch(config, "whole", "inference.whole") else options


def _averaged(segmenters: Sequence[Any]) -> Iterator[str]:
    """Which runs are taken together."""
    for segmenter in segmenters:
        if segmenter.others:
            names = ", ".join(one.name for one in segmenter.members)
            yield f"{' and '.join(segmenter.task.structures)}: the mean of {len(segmenter.members)} runs: {names}"


def _slow(segmenters: Sequence[Any]) -> Iterator[str]:
    """What is said of precisions that a processor computes in software."""
    from covidseg.inference.window import has_bf16_units

    for segmenter in (one for group in segmenters for one in group.members):
        device = next(segmenter.network.parameters()).device
        if word := slow_precision(device.type, segmenter.inferer.precision, has_bf16_units()):
            yield f"note: {word}"


def _passed_over(sources: Any) -> list[str]:
    """What stood at `input` and is no scan, in a line; none where there was nothing else."""
    counts = ((sources.ignored, "other file"), (sources.passed_over, "folder"))
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    deeper = " (reading.recursive=true searches deeper)" if sources.passed_over and not sources.deep else ""
    return [f"{' and '.join(parts)} passed over{deeper}"] if parts else []


def _refusal(case: str, error: Exception) -> CovidSegError:
    """Why a scan was refused, without the traceback, whose frames would keep its voxels in memory."""
    if isinstance(error, CovidSegError):
        return type(error)(error.what, error.wrong, error.remedy)
    # a bug of ours, which must not keep the other scans from being done
    return CovidSegError(case, f"failed with {type(error).__name__}: {error}", "run it alone with debug=true")


def _line(result: Any) -> str:
    figures, parts = result.figures, []
    for name in ("lung", "lesion"):
        if figures[f"{name}_ml"] is not None:
            parts.append(f"{name} {figures[f'{name}_ml']:.0f} ml")
    if figures["infection_share"] is not None:
        parts.append(f"infection share {100 * figures['infection_share']:.1f} %, {figures['mosmed_class']}")
    return ", ".join(parts) + (", already there" if result.resumed else f", {result.seconds:.1f} s")


if __name__ == "__main__":
    main()
