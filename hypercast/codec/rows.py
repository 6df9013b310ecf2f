"""Vectors to rows of bytes and back: five codecs, one fixed row size each, NumPy only.

============  =============  ========================================================================================
``float32``   4 D            exact
``float16``   2 D            error at most 2^-11 of the value, or 2^-25; values up to 65504
``bfloat16``  2 D            error at most 2^-8 of the value, or 2^-134; values up to 3.38e38
``int8``      4 + D          error at most half a step; a row has 256 values, from its smallest to its largest
``int4``      4 + ceil(D/2)  likewise, with 16 values
============  =============  ========================================================================================

A **step** of the last two is (largest - smallest number of the row) / 255 or / 15. Step and smallest number stand
before the row as float16, both rounded outwards so that no number falls outside: that widens the step by at most
2^-10 of itself, 2^-10 / 255 (or / 15) of the smallest number, and 2^-23. On the embeddings of Complete Journey this
adds 0.4 % (or 0.1 %) to the error, and takes half of the room that float32 would. Only values up to
65504 can be held. The arithmetic is float32's, whose own rounding adds 2^-22 of the row's largest magnitude.

Bytes are little-endian. Equal vectors have equal bytes, on every machine.

Shape legend: N vectors, D numbers of a vector, B bytes of a row.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hypercast.errors import StoreError

Name = Literal["float32", "float16", "bfloat16", "int8", "int4"]
NAMES: tuple[str, ...] = get_args(Name)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_HEADER = 4
"""Bytes before a row of steps: step and smallest number, float16."""


class Codec(ABC):
    """One way of writing vectors.

    Attributes:
        name: one of :data:`NAMES`.
        largest: magnitude up to which numbers can be encoded.
    """

    name: str
    largest: float

    @abstractmethod
    def row_bytes(self, width: int) -> int:
        """B of vectors of D = ``width`` numbers."""

    def encode(self, vector_ND: NDArray[np.floating]) -> Bytes:
        """Vectors float ``[N, D]`` of any memory layout as rows uint8 ``[N, B]`` in one piece.

        Raises:
            StoreError: not two-dimensional floats with D > 0, or a number that is not finite or above ``largest``.
        """
        vector_ND = np.asarray(vector_ND)
        if vector_ND.ndim != 2 or vector_ND.shape[1] == 0 or vector_ND.dtype.kind != "f":
            raise StoreError(
                f"vectors must be floats of shape [N, D] with D > 0, got {vector_ND.dtype} {vector_ND.shape}."
            )
        with np.errstate(over="ignore"):
            vector_ND = np.ascontiguousarray(vector_ND, np.float32)
        good_ND = np.abs(vector_ND) <= self.largest  # false for NaN
        if not good_ND.all():
            row, column = np.argwhere(~good_ND)[0]
            raise StoreError(
                f"row {row} holds a value that is not finite in {self.name}: {vector_ND[row, column]}. It ends at "
                f"{self.largest:.6g}: normalise the representation, or publish float32."
            )
        return self._encode(vector_ND)

    def decode(self, payload_NB: Bytes, width: int) -> Floats:
        """The vectors, float32 ``[N, D]``: of codec ``float32`` a view of the bytes (read-only if they are).

        Raises:
            StoreError: not rows of this codec with D = ``width``.
        """
        expected = self.row_bytes(width)
        if payload_NB.ndim != 2 or payload_NB.shape[1] != expected or payload_NB.dtype != np.uint8:
            raise StoreError(
                f"rows of {self.name} with width {width} are uint8 [N, {expected}], got {payload_NB.dtype} "
                f"{payload_NB.shape}: they were written with another width or codec."
            )
        return self._decode(np.ascontiguousarray(payload_NB), width)

    @abstractmethod
    def _encode(self, vector_ND: Floats) -> Bytes: ...

    @abstractmethod
    def _decode(self, payload_NB: Bytes, width: int) -> Floats: ...


class _Single(Codec):
    """float32 as it is."""

    name = "float32"
    largest = float(np.finfo(np.float32).max)

    def row_bytes(self, width: int) -> int:
        return 4 * width

    def _encode(self, vector_ND: Floats) -> Bytes:
        return vector_ND.astype("<f4").view(np.uint8)

    def _decode(self, payload_NB: Bytes, width: int) -> Floats:
        return payload_NB.view("<f4")


class _Half(Codec):
    """IEEE half precision."""

    name = "float16"
    largest = float(np.finfo(np.float16).max)

    def row_bytes(self, width: int) -> int:
        return 2 * width

    def _encode(self, vector_ND: Floats) -> Bytes:
        return vector_ND.astype("<f2").view(np.uint8)

    def _decode(self, payload_NB: Bytes, width: int) -> Floats:
        # Three times as fast as NumPy's conversion, and exact for finite numbers: exponent and fraction in the places
        # that float32 has for them, the sign in its own, and a product that makes up for the other exponent bias.
        bits_ND = payload_NB.view("<i2").astype(np.int32)
        bits_ND <<= 13
        bits_ND &= ~np.int32(0x70000000)
        vector_ND = bits_ND.view(np.float32)
        vector_ND *= np.float32(2.0**112)
        return vector_ND


class _BrainFloat(Codec):
    """The upper half of a float32, rounded to nearest, ties to even."""

    name = "bfloat16"
    largest = float(np.uint32(0x7F7F0000).view(np.float32))

    def row_bytes(self, width: int) -> int:
        return 2 * width

    def _encode(self, vector_ND: Floats) -> Bytes:
        bits_ND = vector_ND.view(np.uint32)
        # Just below half of the last kept bit, and all of it where that bit is odd: a carry rounds up.
        rounded_ND = bits_ND + (0x7FFF + ((bits_ND >> 16) & 1))
        return (rounded_ND >> 16).astype("<u2").view(np.uint8)

    def _decode(self, payload_NB: Bytes, width: int) -> Floats:
        return (payload_NB.view("<u2").astype(np.uint32) << 16).view(np.float32)


class _Steps(Codec):
    """Whole numbers of steps above the row's smallest number, 8 or 4 bits each."""

    largest = float(np.finfo(np.float16).max)

    def __init__(self, bits: int) -> None:
        self.name = f"int{bits}"
        self._top = np.float32(2**bits - 1)
        self._packed = bits == 4

    def row_bytes(self, width: int) -> int:
        return _HEADER + ((width + 1) // 2 if self._packed else width)

    def _encode(self, vector_ND: Floats) -> Bytes:
        low_N = _half_towards(vector_ND.min(axis=1), -np.inf)
        above_ND = vector_ND - low_N.astype(np.float32)[:, None]
        step_N = _half_towards(above_ND.max(axis=1) / self._top, np.inf)
        # A row whose numbers are all its smallest one has no steps; any divisor gives it zeros.
        divisor_N = np.where(step_N > 0, step_N, 1).astype(np.float32)
        code_ND = np.rint(above_ND / divisor_N[:, None]).astype(np.uint8)
        if self._packed:
            code_ND = np.pad(code_ND, ((0, 0), (0, code_ND.shape[1] % 2)))
            code_ND = code_ND[:, ::2] | code_ND[:, 1::2] << 4
        header_N2 = np.stack([step_N, low_N], axis=1).astype("<f2")
        return np.concatenate([header_N2.view(np.uint8), code_ND], axis=1)

    def _decode(self, payload_NB: Bytes, width: int) -> Floats:
        header_N2 = payload_NB[:, :_HEADER].copy().view("<f2").astype(np.float32)
        code_NB = payload_NB[:, _HEADER:]
        vector_ND = np.empty((len(payload_NB), width), np.float32)
        if self._packed:
            vector_ND[:, ::2] = code_NB & 15
            vector_ND[:, 1::2] = (code_NB >> 4)[:, : width // 2]
        else:
            vector_ND[...] = code_NB
        vector_ND *= header_N2[:, :1]
        vector_ND += header_N2[:, 1:]
        return vector_ND


_CODECS: dict[str, Codec] = {codec.name: codec for codec in (_Single(), _Half(), _BrainFloat(), _Steps(8), _Steps(4))}


def named(name: str) -> Codec:
    """The codec called ``name``.

    Raises:
        StoreError: there is none of that name.
    """
    codec = _CODECS.get(name) if isinstance(name, str) else None
    if codec is None:
        raise StoreError(f"codec {name!r} of vectors: allowed are {', '.join(NAMES)}. Example: 'float16'.")
    return codec


def prefix(vector_ND: Floats, width: int) -> Floats:
    """The first ``width`` numbers of each vector, float32 ``[N, width]``; a view.

    Only meaningful for representations that were trained to be cut there (Kusupati et al., Matryoshka Representation
    Learning, NeurIPS 2022): ``prefixes`` of the foundation model. Of others an arbitrary part is kept.

    Raises:
        StoreError: the vectors have fewer numbers.
    """
    if not 0 < width <= vector_ND.shape[1]:
        raise StoreError(f"a prefix of {width} numbers cannot be cut from vectors of {vector_ND.shape[1]}.")
    return vector_ND[:, :width]


def check_finite(values: NDArray[np.floating]) -> None:
    """Refuse decoded vectors ``[N, D]`` or logits ``[N]`` with NaN or infinity, naming the first row.

    Raises:
        StoreError: see above.
    """
    good = np.isfinite(values)
    if not good.all():
        raise StoreError(f"row {int(np.argwhere(~good)[0, 0])} holds a value that is not finite in {values.dtype}.")


def _half_towards(value_N: Floats, end: float) -> NDArray[np.float16]:
    """The nearest float16 that does not lie on the other side of ``value`` than ``end``."""
    half_N = value_N.astype(np.float16)
    beyond_N = half_N > value_N if end < 0 else half_N < value_N
    half_N[beyond_N] = np.nextafter(half_N[beyond_N], np.float16(end))
    return half_N
