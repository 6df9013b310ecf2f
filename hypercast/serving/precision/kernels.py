"""Linear layers for inference in float32, bfloat16 and int8: siblings with one signature.

Every row is computed as if it were alone, so a candidate's score does not depend on what is scored beside it (law L6):
the int8 kernel has a scale of its own for every row, where PyTorch's dynamic quantisation has one for the batch.

Each kernel also says how much noise it is to be expected to add, from statistics of its inputs and its own weights:
rounding errors are taken as independent and uniform (after LoKA, arXiv 2605.10886).

Shape legend: N rows, I inputs, O outputs.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercast.serving.precision.moments import Moments

KernelName = Literal["float32", "bfloat16", "int8"]

_BFLOAT16_ERROR = 2.0**-8 * (1 - 2.0**-2) ** 0.5 / (3 * 2 * 0.6931471805599453) ** 0.5
"""Root mean square of the relative error of rounding to bfloat16's 8 bits, of numbers spread evenly in logarithm."""
_INT8 = 127.0
_TINY = 1e-30


class LinearKernel(nn.Module):
    """``y = x W' + b`` without gradients; takes any float dtype.

    Attributes:
        in_features, out_features: as of ``nn.Linear``.
        keep: whether the output stays in the kernel's own dtype, for what comes next to go on in; float32 otherwise.
    """

    name: ClassVar[KernelName]

    def __init__(self, *, in_features: int, out_features: int, keep: bool) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.keep = keep

    @staticmethod
    def unavailable() -> str | None:
        """Why the kernel is of no use on this machine, or None."""
        return None

    @classmethod
    @abstractmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> "LinearKernel":
        """The kernel of a float32 layer."""

    @classmethod
    @abstractmethod
    def restored(cls, tensors: dict[str, Tensor], *, keep: bool) -> "LinearKernel":
        """The kernel that gave these :meth:`tensors`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that it computes with, by name, as it is kept on disk."""

    @abstractmethod
    def multiplied(self) -> Tensor:
        """Float32 ``[O, I]``, the weight as it is multiplied."""

    @abstractmethod
    def noise(self, inputs: Moments, outputs: Moments) -> Tensor:
        """Expected square of the error against float32, float64 ``[O]``, from the moments of its inputs and outputs."""

    @property
    def nbytes(self) -> int:
        """Of weights, scales and bias."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def predicted_error(self, inputs: Moments, outputs: Moments) -> float:
        """Expected root mean square of the error, against that of the outputs."""
        return float((self.noise(inputs, outputs).sum() / outputs.power_I.sum().clamp(min=_TINY)).sqrt())


class Float32(LinearKernel):
    """The layer as it was, to the bit."""

    name = "float32"

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> None:
        super().__init__(in_features=weight_OI.shape[1], out_features=weight_OI.shape[0], keep=keep)
        self._weight_OI, self._bias_O = weight_OI, bias_O

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> "Float32":
        return cls(weight_OI.detach(), None if bias_O is None else bias_O.detach(), keep=keep)

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], *, keep: bool) -> "Float32":
        return cls(tensors["weight"], tensors.get("bias"), keep=keep)

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self._weight_OI, bias=self._bias_O)

    def multiplied(self) -> Tensor:
        return self._weight_OI

    def noise(self, inputs: Moments, outputs: Moments) -> Tensor:
        return torch.zeros(self.out_features, dtype=torch.float64)

    def forward(self, x_NI: Tensor) -> Tensor:
        return F.linear(x_NI.float(), self._weight_OI, self._bias_O)


class BFloat16(LinearKernel):
    """oneDNN's product of bfloat16 numbers, summed in float32, on a weight in the order that it likes."""

    name = "bfloat16"

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> None:
        super().__init__(in_features=weight_OI.shape[1], out_features=weight_OI.shape[0], keep=keep)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        self._bias_O = bias_O

    @staticmethod
    def unavailable() -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "this build of PyTorch has no oneDNN"
        if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
            return "this CPU has neither AMX nor AVX512-BF16, and would compute in float32"
        return None

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> "BFloat16":
        return cls(_rounded(weight_OI), None if bias_O is None else _rounded(bias_O), keep=keep)

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], *, keep: bool) -> "BFloat16":
        return cls(tensors["weight"], tensors.get("bias"), keep=keep)

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self._packed.to_dense(), bias=self._bias_O)

    def multiplied(self) -> Tensor:
        return self._packed.to_dense().float()

    def noise(self, inputs: Moments, outputs: Moments) -> Tensor:
        """Both factors of each product are rounded, and the sum once more."""
        products_O = self.multiplied().double().square() @ inputs.power_I
        return _BFLOAT16_ERROR**2 * (2 * products_O + outputs.power_I)

    def forward(self, x_NI: Tensor) -> Tensor:
        x = x_NI.bfloat16()
        if not x.numel():  # oneDNN knows no empty products
            y = x.new_zeros(*x.shape[:-1], self.out_features)
        else:
            y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias_O, "none", [], "")
        return y if self.keep else y.float()


class Int8(LinearKernel):
    """Products of int8 numbers, summed in int32: symmetric, a scale for every output and, as they come, every row."""

    name = "int8"

    def __init__(self, weight_OI: Tensor, scale_O: Tensor, bias_O: Tensor | None, *, keep: bool) -> None:
        super().__init__(in_features=weight_OI.shape[1], out_features=weight_OI.shape[0], keep=keep)
        self._weight_OI, self._scale_O = weight_OI, scale_O
        self._bias_O = torch.zeros_like(scale_O) if bias_O is None else bias_O

    @staticmethod
    def unavailable() -> str | None:
        if not (torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()):
            return "this CPU has neither VNNI nor AMX, and multiplies int8 no faster than float32"
        return None

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor | None, *, keep: bool) -> "Int8":
        weight_OI = weight_OI.detach()
        scale_O = weight_OI.abs().amax(1).clamp(min=_TINY) / _INT8
        quantised_OI = (weight_OI / scale_O[:, None]).round().to(torch.int8)
        return cls(quantised_OI, scale_O, None if bias_O is None else bias_O.detach().clone(), keep=keep)

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], *, keep: bool) -> "Int8":
        return cls(tensors["weight"], tensors["scale"], tensors["bias"], keep=keep)

    def tensors(self) -> dict[str, Tensor]:
        return _named(weight=self._weight_OI, scale=self._scale_O, bias=self._bias_O)

    def multiplied(self) -> Tensor:
        return self._weight_OI * self._scale_O[:, None]

    def noise(self, inputs: Moments, outputs: Moments) -> Tensor:
        """Steps are of 1/127 of the largest of a row: of the weight's, known; of the input's, if it were Gaussian."""
        step = inputs.typical_largest() / _INT8
        of_inputs_O = step**2 / 12 * self.multiplied().double().square().sum(1)
        of_weights_O = self._scale_O.double().square() / 12 * inputs.power_I.sum()
        return of_inputs_O + of_weights_O

    def forward(self, x_NI: Tensor) -> Tensor:
        x = x_NI.float().reshape(-1, self.in_features)
        scale_N1 = x.abs().amax(1, keepdim=True).clamp_(min=_TINY).mul_(1 / _INT8)
        quantised = (x / scale_N1).round_().to(torch.int8)
        y = torch._int_mm(quantised, self._weight_OI.t()) * scale_N1
        return torch.addcmul(self._bias_O, y, self._scale_O).view(*x_NI.shape[:-1], self.out_features)


KERNELS: dict[KernelName, type[LinearKernel]] = {kernel.name: kernel for kernel in (Float32, BFloat16, Int8)}


def _rounded(tensor: Tensor) -> Tensor:
    return tensor.detach().bfloat16()


def _named(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
