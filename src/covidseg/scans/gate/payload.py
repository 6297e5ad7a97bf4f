"""Bytes out of a file, decompressed or not: exactly as many as the header promised, up to the checksum at the end."""

import math
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from covidseg.system.errors import BadInput, EnvironmentFault

_BLOCK = 1 << 20  # bytes handed on at a time: what is held beside the array itself
_DEFLATE_LIMIT = 1032  # to one: no deflate stream expands further, so a header that claims more is lying
_MAX_BYTES = 8 << 30  # 1024 x 1024 x 1000 voxels of 64 bits
_SUSPECT_BYTES, _SUSPECT_RATIO = 1 << 30, 250  # an empty mask compresses 1000 to 1, but is no larger than a gigabyte
_WBITS = {"gzip": 31, "zlib": 15}
_AGAIN = "copy or download it again"


class Payload:
    """The bytes of `stream` from where it stands, in order; `compression` is None, "gzip" or "zlib".

    Every method raises `BadInput` when the stream ends early, goes on for too long, or fails its checksum.
    """

    def __init__(self, stream: BinaryIO, what: str, compression: str | None = None):
        self.what, self.compression = what, compression
        self._available = os.fstat(stream.fileno()).st_size - stream.tell()
        self._blocks = self._inflate(stream) if compression else iter(lambda: stream.read(_BLOCK), b"")
        self._left = memoryview(b"")
        self._taken = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        return bytes(self._fill(bytearray(size), size))

    def peek(self, size: int) -> bytes:
        """The next bytes, fewer than `size` when the stream is shorter; they stay in the stream."""
        while len(self._left) < size and (block := next(self._blocks, b"")):
            self._left = memoryview(bytes(self._left) + block)
        return bytes(self._left[:size])

    def last_array(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The next prod(shape) numbers, the last of the stream; nothing is allocated for a false claim."""
        wanted = math.prod(shape) * dtype.itemsize
        self._refuse_impossible(wanted)
        try:
            array = np.empty(shape, dtype)
        except MemoryError as error:
            raise EnvironmentFault(self.what, f"its {wanted / 1e9:.1f} GB of voxels do not fit into memory") from error
        self._fill(array.reshape(-1).view(np.uint8).data, wanted)
        if len(self._left) or next(self._blocks, b""):
            raise BadInput(self.what, f"holds more than the {wanted} voxel bytes of its header", _AGAIN)
        return array

    def _refuse_impossible(self, wanted: int) -> None:
        held = self._available * _DEFLATE_LIMIT if self.compression else self._available - self._taken
        if wanted > held:
            claim = (
                f"truncated: the header promises {wanted} bytes of voxels, the file has room for at most {max(held, 0)}"
            )
            raise BadInput(self.what, claim, _AGAIN)
        if not self.compression and wanted < held:
            raise BadInput(self.what, f"holds {held} voxel bytes where its header says {wanted}", _AGAIN)
        bomb = wanted > _SUSPECT_BYTES and wanted > self._available * _SUSPECT_RATIO
        if wanted > _MAX_BYTES or bomb:
            raise BadInput(
                self.what, f"claims {wanted / 1e9:.1f} GB of voxels in {self._available} bytes", "not a CT scan"
            )

    def _fill(self, target, size: int):
        filled = 0
        while filled < size:
            if not len(self._left):
                self._left = memoryview(next(self._blocks, b""))
                if not len(self._left):
                    total = f"after {self._taken + filled} of {self._taken + size} bytes"
                    raise BadInput(self.what, f"truncated: ends {total}", _AGAIN)
            part = self._left[: size - filled]
            target[filled : filled + len(part)] = part
            filled, self._left = filled + len(part), self._left[len(part) :]
        self._taken += size
        return target

    def _inflate(self, stream: BinaryIO) -> Iterator[bytes]:
        """Decompressed blocks. zlib itself compares CRC and length at the end of each gzip member."""
        decoder, compressed = zlib.decompressobj(_WBITS[str(self.compression)]), b""
        try:
            while compressed or (compressed := stream.read(_BLOCK)):
                if decoder.eof:  # members may follow one another (bgzip), nothing else may
                    if self.compression != "gzip" or not b"\x1f\x8b".startswith(compressed[:2]):
                        raise BadInput(self.what, f"bytes follow the end of its {self.compression} stream", _AGAIN)
                    decoder = zlib.decompressobj(_WBITS["gzip"])
                while block := decoder.decompress(compressed, _BLOCK):
                    yield block
                    compressed = decoder.unconsumed_tail
                compressed = decoder.unused_data
        except zlib.error as error:
            raise BadInput(self.what, f"damaged: {self.compression} checksum or stream wrong", _AGAIN) from error
        if not decoder.eof:
            raise BadInput(self.what, f"truncated: its {self.compression} stream has no end", _AGAIN)
