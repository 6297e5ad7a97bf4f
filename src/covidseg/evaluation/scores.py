"""Scores of cases that several processes share, as a torchmetrics `Metric`: each case is scored on one of them."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from covidseg.evaluation.metrics import COUNTS, METRICS, REASONS, VOLUMES

_METRICS = tuple(metric.name for metric in METRICS)
_NUMBERS = (*_METRICS, *COUNTS, *VOLUMES)
_ONCE = "the scored cases are not the cases of the sets, each once"


class CaseScores(Metric):
    """Scores of the cases and structures that `expect` names, from whichever process has them.

    The state has one row for each of them on every process, whatever share a process has: no process waits for the
    shape of another's state, none has nothing to send, and the sum over processes is the whole. Numbers are kept as the
    bits of a float64, since a sum with zeros leaves integers as they are: NaN, which stands for an undefined score,
    would spread in a sum of floats, and some devices have no float64.
    """

    full_state_update = False
    is_differentiable = False
    numbers: Tensor  # (rows, numbers), bits of float64
    reasons: Tensor  # (rows, metrics): 0, or 1 + the place in REASONS of why a metric is undefined
    updates: Tensor  # (rows,): how often a row was scored

    def __init__(self) -> None:
        super().__init__()
        self.expect([])

    def expect(self, identities: Iterable[Mapping[str, Any]]) -> None:
        """Begin anew, with a row for each of `identities`: `set`, `case`, `structure`, and what else names it.

        All processes expect the same. Raises `RuntimeError` where one of them occurs twice.
        """
        self.identities = [dict(identity) for identity in identities]
        self.row_of = {_key(identity): row for row, identity in enumerate(self.identities)}
        if len(self.row_of) != len(self.identities):
            raise RuntimeError(_ONCE)
        rows = len(self.identities)
        for name, shape in (
            ("numbers", (rows, len(_NUMBERS))),
            ("reasons", (rows, len(_METRICS))),
            ("updates", (rows,)),
        ):
            zeros = torch.zeros(shape, dtype=torch.int64, device=self.device)
            self.add_state(name, zeros, dist_reduce_fx="sum")
        self.reset()

    def update(self, set_name: str, case: str, structure: str, scores: Mapping[str, Any]) -> None:
        """Take what `case_metrics` gave for one case and structure."""
        row = self.row_of[set_name, case, structure]
        values = [float("nan") if scores[name] is None else float(scores[name]) for name in _NUMBERS]
        undefined = [1 + REASONS.index(scores["undefined"][name]) if scores[name] is None else 0 for name in _METRICS]
        self.numbers[row] = torch.tensor(values, dtype=torch.float64).view(torch.int64).to(self.device)
        self.reasons[row] = torch.tensor(undefined, device=self.device)
        self.updates[row] += 1

    def compute(self) -> list[dict[str, Any]]:
        """What was given to `update` on all processes, each beside its identity, in the order of `expect`."""
        if not (self.updates == 1).all():
            raise RuntimeError(_ONCE)
        numbers, reasons = self.numbers.cpu().view(torch.float64).tolist(), self.reasons.cpu().tolist()
        rows = []
        for identity, values, codes in zip(self.identities, numbers, reasons, strict=True):
            scores: dict[str, Any] = dict(zip(_NUMBERS, values, strict=True))
            undefined = {name: REASONS[code - 1] for name, code in zip(_METRICS, codes, strict=True) if code}
            scores |= dict.fromkeys(undefined) | {name: int(scores[name]) for name in COUNTS}
            rows.append({**identity, **scores, "undefined": undefined})
        return rows

    def collect(self) -> list[dict[str, Any]]:
        """`compute`, also on a process that had no case to score, of which torchmetrics would warn."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric CaseScores was called before")
            return self.compute()


def _key(identity: Mapping[str, Any]) -> tuple[str, str, str]:
    return identity["set"], identity["case"], identity["structure"]
