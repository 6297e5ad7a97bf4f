"""Many scans, one after the other: the next one is read and the last one written while this one is segmented.

At most three scans are in memory: the one in hand, the one that is read ahead, the one that is being written. Each is
two bytes a voxel and, once it is segmented, one more for each structure.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from covidseg.inference.batch import Opened, Predictor, Progress, Result
from covidseg.scans.read import ScanSource

Outcome = Result | Exception


def predicted(
    predictor: Predictor, sources: Sequence[ScanSource], progress: Callable[[], AbstractContextManager[Progress | None]]
) -> Generator[tuple[ScanSource, Outcome], None, None]:
    """(source, its result or what it failed with) in the given order; a failure stops no other scan.

    `progress()` is entered around the segmentation of each scan. Close the generator where it is left early: what is
    being written is then still finished, and what is being read is dropped.
    """
    reader, writer = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(1, "write")
    ahead: Future[Opened] | None = None
    behind: tuple[ScanSource, Future[Result]] | None = None
    try:
        for number, source in enumerate(sources):
            opening, ahead = ahead or reader.submit(predictor.read, source), None
            error, segmented = None, None
            try:
                opened = opening.result()
                del opening
                if number + 1 < len(sources):
                    ahead = reader.submit(predictor.read, sources[number + 1])
                with progress() as bar:
                    segmented = predictor.segment(opened, bar)
                del opened
            except Exception as caught:
                error = caught
            if behind:  # first, so that nothing more is written where the last one could not be
                yield behind[0], _outcome(behind[1])
                behind = None
            if error is not None:
                yield source, error
            elif segmented is not None:
                behind = source, writer.submit(predictor.write, segmented)
        if behind:
            yield behind[0], _outcome(behind[1])
    finally:
        reader.shutdown(wait=False, cancel_futures=True)
        writer.shutdown(wait=True)


def _outcome(written: Future[Result]) -> Outcome:
    error = written.exception()
    if error is None:
        return written.result()
    if isinstance(error, Exception):
        return error
    raise error
