"""What the named parts of a mask mean: segments of .seg.nrrd and DICOM SEG, regions of an RTSTRUCT."""

from collections.abc import Mapping, Sequence

from covidseg.system.errors import BadInput


def meanings(
    what: str,
    names: Sequence[str],
    labels: Mapping[int | str, int],
    mapped_by: str,
    part: str = "segment",
    others_are_background: bool = False,
) -> list[int]:
    """The label of each name, looked up in `labels` with case apart.

    Where `labels` names nothing, a file's only part is what all its values mean; several are refused, for their values
    follow the order in which they were drawn. `others_are_background`: what is not named counts as background as long
    as something is. `mapped_by`: the override that gives a VALUE a meaning, for the remedy.
    """
    by_name = {name.casefold(): label for name, label in labels.items() if isinstance(name, str)}
    unknown = [name for name in names if name.casefold() not in by_name]
    if not unknown or (others_are_background and len(unknown) < len(names)):
        return [by_name.get(name.casefold(), 0) for name in names]
    meant = {label for name, label in labels.items() if not isinstance(name, str) and label}
    if len(names) == 1 and len(meant) == 1 and not by_name:
        return list(meant)
    say = f"say what each is: {mapped_by.replace('VALUE', unknown[0])}, or background" if mapped_by else "name them"
    raise BadInput(what, f"holds the {part}s {', '.join(names)}, and {unknown[0]} has no meaning", say)
