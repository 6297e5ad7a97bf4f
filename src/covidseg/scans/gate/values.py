"""Are these Hounsfield units? Are these labels? From stored numbers of any type to int16 HU or uint8 labels."""

from collections.abc import Iterator, Mapping

import numpy as np

from covidseg.scans.gate.assume import Assume
from covidseg.scans.gate.grids import Volume
from covidseg.system.errors import BadInput

HU_RANGE = (-1024, 3071)  # twelve bits, which is what scanners store; below is padding, above is metal
_SLAB = 1 << 22  # voxels converted at a time
_SAMPLE = 1 << 22  # voxels in the histogram that HU are recognised by
_WHITE_8BIT = 255  # the largest grey level of eight bits
_SHIFTED = "offset=-1024 if it is HU + 1024"
_BINS = (-4096, 4095)
_AIR = (-1100, -700)  # lungs and what surrounds the body
_TISSUE = (-500, 3071)
_SOFT_TISSUE_MEDIAN = (-400, 300)
_PADDING_VARIES = 2  # HU, by near-lossless compression
_PADDING = (-1100, -900)  # where the field of view's padding, -2048 HU, comes to lie when an intercept of -1024 is lost
_FAT = -50  # every chest has more than a trace below: fat, lung, air
_BONE = 500  # and only a trace above
_LABEL_ERROR = 1e-3  # what scaling and float storage leave of a whole number


def to_hu(volume: Volume, what: str, assume: Assume) -> tuple[np.ndarray, list[str]]:
    """(int16 HU (z, y, x) clipped to [-1024, 3071], notes); `BadInput` when the values are not HU or not finite."""
    bad = sum(np.count_nonzero(~np.isfinite(slab)) for _, slab in _scaled(volume)) if _is_float(volume) else 0
    if bad and assume.fill is None:
        wrong = f"{bad} of {volume.stored.size} voxels are NaN or infinite"
        raise BadInput(what, wrong, assume.or_say("mend it", "fill=-1024"))
    out = np.empty(volume.stored.shape, np.int16)
    histogram = np.zeros(_BINS[1] - _BINS[0] + 1, np.int64)
    stride = -(-out.size // _SAMPLE)
    low, high = np.inf, -np.inf
    below = above = 0
    for where, slab in _scaled(volume):
        values = _in_hu(slab, what, assume)
        low, high = min(low, values.min()), max(high, values.max())
        below += int(np.count_nonzero(values < HU_RANGE[0]))
        above += int(np.count_nonzero(values > HU_RANGE[1]))
        sample = np.rint(np.clip(values.ravel()[::stride], *_BINS)).astype(np.int64) - _BINS[0]
        histogram += np.bincount(sample, minlength=len(histogram))
        clipped = np.clip(values, *HU_RANGE)
        out[where] = np.rint(clipped) if clipped.dtype.kind == "f" else clipped
    if not assume.hu and (objection := objection_to_hu(histogram)):
        evidence = _evidence(histogram, low, high)
        looks_8bit = low >= 0 and high <= _WHITE_8BIT and assume.window_8bit is None
        other = "window_8bit=[-1250,250] if 0 and 255 stand for these HU" if looks_8bit else _SHIFTED
        raise BadInput(what, f"{objection} ({evidence})", assume.or_say("convert it to HU", "hu=true if it is", other))
    notes = [f"{bad} voxels that were NaN or infinite set to {assume.fill:g} HU"] if bad else []
    if below:
        notes.append(f"{below} voxels below {HU_RANGE[0]} HU (down to {low:g}) clipped: padding")
    if above:
        notes.append(f"{above} voxels above {HU_RANGE[1]} HU (up to {high:g}) clipped: metal")
    tissue = histogram[_TISSUE[0] - _BINS[0] :].sum() / histogram.sum()
    if low == high or tissue < 1e-3:
        notes.append("no body found: all voxels are alike or air")
    return out, notes


def objection_to_hu(histogram: np.ndarray) -> str | None:
    """What speaks against a histogram of whole values from -4096 to 4095 being HU of a chest; None when nothing does.

    Lungs and air make up at least 1% between -1100 and -700; below that lies only padding, which has a value or two,
    give or take what a near-lossless archive changes;
    the median of what is neither is that of soft tissue. Padding alone is not taken for air where nothing else lies
    below -50 and much above 500: a scan as stored, 1024 too high, whose padding of -2048 fell on -1024. A volume of one
    value (all air, all zero) passes: it is no chest, but no other unit either.
    """
    total, value = histogram.sum(), np.arange(_BINS[0], _BINS[1] + 1)
    if np.count_nonzero(histogram) == 1:
        return None
    below = histogram[value < _AIR[0]]
    if _beside_padding(below) > 0.05 * total:
        return "not Hounsfield units: values vary below -1100, where CT has only padding"
    if histogram[(value >= _AIR[0]) & (value <= _AIR[1])].sum() < 0.01 * (total - below.sum()):
        return "not Hounsfield units: no air or lung near -1000"
    padding = histogram[(value >= _PADDING[0]) & (value <= _PADDING[1])].max()
    rest = total - below.sum() - padding
    light = histogram[(value >= _AIR[0]) & (value < _FAT)].sum() - padding
    if light < 0.02 * rest and histogram[value > _BONE].sum() > 0.1 * rest:
        return "not Hounsfield units: near -1000 lies a single value, padding, and no lung; stored as HU + 1024?"
    tissue = np.where(value > _TISSUE[0], histogram, 0)
    if tissue.sum() >= 0.01 * total:
        median = value[np.searchsorted(np.cumsum(tissue), tissue.sum() / 2)]
        if not _SOFT_TISSUE_MEDIAN[0] <= median <= _SOFT_TISSUE_MEDIAN[1]:
            return f"not Hounsfield units: soft tissue would lie at {median}, not near 0"
    return None


def _beside_padding(below: np.ndarray) -> int:
    """How many voxels lie further than two HU from the two most common values of a histogram."""
    left = below.copy()
    for _ in range(2):
        peak = int(left.argmax())
        left[max(0, peak - _PADDING_VARIES) : peak + _PADDING_VARIES + 1] = 0
    return int(left.sum())


def to_labels(
    volume: Volume, what: str, labels: Mapping[int, int], mapped_by: str = ""
) -> tuple[np.ndarray, list[str]]:
    """(uint8 (z, y, x), notes): each stored label replaced as `labels` says.

    `BadInput` lists the values that are no key of `labels` to within 0.001, with their counts; `mapped_by` is the
    override that gives a VALUE a meaning, for the remedy.
    """
    out = np.zeros(volume.stored.shape, np.uint8)
    strange: dict[float, int] = {}
    rounded, furthest = 0, 0.0
    for where, slab in _scaled(volume):
        nearest = np.rint(slab) if slab.dtype.kind == "f" else slab
        known = np.zeros(slab.shape, bool)
        for stored, label in labels.items():
            here = nearest == stored
            known |= here
            if label:
                out[where][here] = label
        if slab.dtype.kind == "f":
            error = np.abs(np.subtract(slab, nearest, where=known, out=np.zeros_like(slab)))
            rounded += int(np.count_nonzero(error))
            furthest = max(furthest, error.max())
            known &= error <= _LABEL_ERROR
        for value, count in zip(*np.unique(slab[~known], return_counts=True), strict=True):
            strange[float(value)] = strange.get(float(value), 0) + int(count)
        if len(strange) > 100:  # a CT, or a probability map
            break
    if strange:
        most = sorted(strange.items(), key=lambda item: -item[1])[:6]
        listed = ", ".join(f"{value:g} ({count} voxels)" for value, count in most)
        more = f" and {len(strange) - 6} or more others" if len(strange) > 6 else ""
        wrong = f"labels must be {sorted(labels)}, found {listed}{more}"
        first = most[0][0]
        can_be_said = mapped_by and len(strange) <= 6 and first > 0 and first.is_integer()
        say = ", or say what it means: " + mapped_by.replace("VALUE", f"{first:g}") if can_be_said else ""
        raise BadInput(what, wrong, f"mend the mask{say}")
    return out, [f"{rounded} labels rounded by up to {furthest:.2g}"] if rounded else []


def _scaled(volume: Volume) -> Iterator[tuple[slice, np.ndarray]]:
    """(z range, values) slab by slab, not to be written to: the stored type where nothing is scaled, else float64."""
    depth = max(1, _SLAB // max(1, volume.stored[0].size))
    plain = volume.slope == 1 and volume.intercept == 0
    for start in range(0, len(volume.stored), depth):
        where = slice(start, start + depth)
        slab = volume.stored[where]
        if plain:
            yield where, slab.astype(slab.dtype.newbyteorder("="), copy=False)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                yield where, slab.astype(np.float64) * volume.slope + volume.intercept


def _in_hu(slab: np.ndarray, what: str, assume: Assume) -> np.ndarray:
    """int16 or floating HU, with what the user vouches for applied."""
    bad = None
    if assume.fill is not None and slab.dtype.kind == "f":
        bad = ~np.isfinite(slab)
        slab = np.where(bad, 0, slab)
    if assume.window_8bit is not None:
        if slab.min() < 0 or slab.max() > 255:
            wrong = f"values {slab.min():g} to {slab.max():g} are no 8-bit grey levels"
            raise BadInput(what, wrong, f"drop {assume.option.lstrip('+') or 'assume'}.window_8bit")
        low, high = assume.window_8bit
        slab = slab * ((high - low) / 255) + low
    if assume.offset:
        slab = slab + assume.offset
    if bad is not None and assume.fill is not None:
        slab = np.where(bad, assume.fill, slab)
    return slab if slab.dtype.kind == "f" or slab.dtype == np.int16 else slab.astype(np.float64)


def _is_float(volume: Volume) -> bool:
    return volume.stored.dtype.kind == "f"


def _evidence(histogram: np.ndarray, low: float, high: float) -> str:
    share = np.cumsum(histogram) / histogram.sum()
    p5, p50, p95 = (int(np.searchsorted(share, p)) + _BINS[0] for p in (0.05, 0.5, 0.95))
    return f"range {low:g} to {high:g}, 5/50/95% at {p5}, {p50}, {p95}"
