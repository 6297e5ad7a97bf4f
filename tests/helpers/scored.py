"""A line of cases.csv for masks that a test made."""

from covidseg.evaluation.metrics import METRICS, case_metrics
from covidseg.evaluation.results import COLUMNS

SPACING = (2.5, 1.5, 1.5)


def case_row(case, structure, prediction, reference, set_name="test", patient=None):
    scores = case_metrics(prediction, reference, SPACING, 3.0)
    reasons = "; ".join(f"{name}: {why}" for name, why in scores.pop("undefined").items())
    identity = {"case": case, "patient": patient or case, "site": "A", "set": set_name, "structure": structure}
    columns = {metric.column: scores[metric.name] for metric in METRICS}
    return {key: ({**identity, **scores, **columns, "undefined": reasons})[key] for key in COLUMNS}
