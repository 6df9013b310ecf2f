"""A repair of Triton's interpreter, in which kernels run where there is no GPU (``TRITON_INTERPRET=1``).

The interpreter keeps bfloat16 as its bits in 16-bit integers. It multiplies matrices of them as if they were integers,
cuts where a GPU rounds to nearest even, and loses the carry where rounding moves to the next power of two.
"""

from typing import Any

import numpy as np
import triton
import triton.language as tl


def interpreted() -> bool:
    """Whether kernels run in the interpreter: the environment said so when Triton was first imported."""
    return bool(triton.knobs.runtime.interpret)


def repair_bfloat16() -> None:
    """Have the interpreter round to and multiply bfloat16 as a GPU does; twice is as good as once."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    if hasattr(InterpreterBuilder, "repaired"):
        return
    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def widened(value: Any) -> Any:
        if value.dtype.scalar != tl.bfloat16:
            return value
        return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(value: Any) -> Any:
        bits = value.data.astype(np.float32).view(np.uint32)
        even = (bits >> 16) & 1
        nearest = (bits + 0x7FFF + even) >> 16
        return TensorHandle(np.where(np.isnan(value.data), 0x7FC0, nearest).astype(np.uint16), tl.bfloat16)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return rounded(source)
        return cast(self, source, kind)

    def create_fp_to_fp(self: Any, source: Any, kind: Any, mode: Any) -> Any:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return rounded(source)
        return fp_to_fp(self, source, kind, mode)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    InterpreterBuilder.repaired = True
