"""The elements of a DICOM file, one after the other, as PS3.5 section 7 and PS3.10 section 7 lay them out."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

TRANSFER_SYNTAX = 0x00020010
PIXEL_DATA = 0x7FE00010
BIG_ENDIAN = "1.2.840.10008.1.2.2"
_IMPLICIT = "1.2.840.10008.1.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
_EXPLICIT = "1.2.840.10008.1.2.1"
_MAX_INFLATED = 1 << 28  # bytes of a slice that comes deflated; one has half a million
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_DEEPEST = 16


class Damaged(Exception):
    """The elements do not follow one another as the standard says."""


class Element(NamedTuple):
    """A top-level element; `end` is where the next begins, `encapsulated` is true of compressed voxels."""

    tag: int
    start: int
    end: int
    encapsulated: bool


class _Coding(NamedTuple):
    order: str
    explicit: bool


_META = _Coding("<", explicit=True)  # of the meta group, whatever follows


def looks_like_dicom(head: bytes) -> bool:
    """By its first 132 bytes: a preamble and DICM, or, as some archives leave it, the first elements without them."""
    if head[128:132] == b"DICM":
        return True
    if head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3:4] != b"\0":
        return False
    typed = head[4:6].isalpha() and head[4:6].isupper()
    return typed or (head[:2] == b"\x08\x00" and 0 < int.from_bytes(head[4:8], "little") < 128)


def inflated(data: bytes) -> bytes:
    """The file as it would be undeflated; `Damaged` where its deflated part breaks off."""
    try:
        _, syntax, at = _meta(data)
        if syntax != DEFLATED:
            return data
        decoder = zlib.decompressobj(-zlib.MAX_WBITS)
        body = decoder.decompress(data[at:], _MAX_INFLATED)
    except (struct.error, zlib.error) as error:
        raise Damaged("breaks off") from error
    if not decoder.eof:
        raise Damaged("breaks off")
    return data[:at] + body


def _meta(data: bytes) -> tuple[list[Element], str | None, int]:
    """(elements of the meta group, transfer syntax, where the group ends)."""
    found: list[Element] = []
    syntax, at = None, 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\x00":
        element = _element(data, at, _META)
        if element.tag == TRANSFER_SYNTAX:
            syntax = data[element.start : element.end].decode("ascii", "replace").strip(" \0")
        found.append(element)
        at = element.end
    return found, syntax, at


def elements(data: bytes) -> Iterator[Element]:
    """Top-level elements of a file, inflated, to the voxels, which end the walk; `Damaged` where it breaks off."""
    try:
        meta, syntax, at = _meta(data)
        yield from meta
        if syntax is None and at == 0:  # not even a meta group: the first element shows how the others are coded
            syntax = _EXPLICIT if data[4:6].isalpha() else _IMPLICIT
        coding = _coding(syntax)
        while at < len(data):
            element = _element(data, at, coding)
            yield element
            if element.tag == PIXEL_DATA:
                return
            at = element.end
    except struct.error as error:
        raise Damaged("breaks off") from error


def _coding(syntax: str | None) -> _Coding:
    if not syntax:
        raise Damaged("has no transfer syntax")
    return _Coding(">" if syntax == BIG_ENDIAN else "<", explicit=syntax != _IMPLICIT)


def _element(data: bytes, at: int, coding: _Coding) -> Element:
    tag, vr, start, length = _head(data, at, coding)
    return Element(tag, start, _end(data, vr, start, length, coding, 0), encapsulated=length == _UNDEFINED)


def _head(data: bytes, at: int, coding: _Coding) -> tuple[int, bytes, int, int]:
    """(tag, value representation, start of the value, its length)."""
    group, number = struct.unpack_from(f"{coding.order}HH", data, at)
    tag = group << 16 | number
    if group == 0xFFFE or not coding.explicit:
        return tag, b"", at + 8, struct.unpack_from(f"{coding.order}I", data, at + 4)[0]
    vr = data[at + 4 : at + 6]
    if not (vr.isalpha() and vr.isupper()):
        raise Damaged("holds an element without a type")
    if vr in _LONG:
        return tag, vr, at + 12, struct.unpack_from(f"{coding.order}I", data, at + 8)[0]
    return tag, vr, at + 8, struct.unpack_from(f"{coding.order}H", data, at + 6)[0]


def _end(data: bytes, vr: bytes, start: int, length: int, coding: _Coding, depth: int) -> int:
    """Where the next element begins: behind `length` bytes, or behind the delimiter of a sequence without a length."""
    end = start + length
    if length == _UNDEFINED:
        end = _sequence_end(data, start, _Coding("<", explicit=False) if vr == b"UN" else coding, depth + 1)
    if end > len(data):
        raise Damaged("breaks off")
    return end


def _sequence_end(data: bytes, at: int, coding: _Coding, depth: int) -> int:
    if depth > _DEEPEST:
        raise Damaged("nests its sequences too deeply")
    while True:
        tag, vr, at, length = _head(data, at, coding)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise Damaged("holds a sequence without items")
        if length != _UNDEFINED:
            at = _end(data, vr, at, length, coding, depth)
            continue
        while True:  # the elements of an item without a length
            tag, vr, at, length = _head(data, at, coding)
            if tag == _ITEM_END:
                break
            at = _end(data, vr, at, length, coding, depth)
