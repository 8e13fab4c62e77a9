"""A packed product for a few rows, by decode.c: it reads the panels that oneDNN packed, and memory never rests while it computes."""

import ctypes
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from lorimer.inference.kernels import Kernels
from lorimer.model.packed import PackedLinear

MAX_ROWS = 64  # beyond, a processor is busier with products than with reading weights
PANEL = 64  # columns that oneDNN packs together
MAX_DIFFERENCE = 1e-2  # of two right ways to sum up a bfloat16 product, relative to its size


class Product(Structure):
    """Where a packed product's weights lie."""

    _fields_ = (("w", c_void_p), ("bias", c_void_p), ("in_features", c_int64), ("out_features", c_int64))


class _Single(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("product", "omp", "x", "y")),
        *((name, c_int64) for name in ("num_rows", "num_threads", "next")),
    )


class CompiledProduct:
    """A packed product that takes few rows itself."""

    def __init__(self, kernels: Kernels, packed: PackedLinear) -> None:
        self.kernels, self.packed, self.product = kernels, packed, product_of(packed)

    def __call__(self, x: Tensor) -> Tensor:
        """x (T, in) -> (T, out)."""
        if len(x) > MAX_ROWS:
            return self.packed(x)
        return _multiply(self.kernels, self.product, x.contiguous())


def faster(packed: PackedLinear, kernels: Kernels | None) -> PackedLinear | CompiledProduct:
    """The same product, by decode.c where that can be."""
    return packed if kernels is None or not kernels.can_decode or not is_read_right(kernels, packed) else CompiledProduct(kernels, packed)


@torch.inference_mode()
def is_read_right(kernels: Kernels, packed: PackedLinear) -> bool:
    """Whether decode.c finds the numbers of a packed product where it looks for them."""
    if not packed.is_packed or sum(packed.out_features) % PANEL or packed.in_features % 2:
        return False
    x = torch.randn(2, packed.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted, found = packed(x).float(), _multiply(kernels, product_of(packed), x).float()
    return bool((found - wanted).norm() <= MAX_DIFFERENCE * wanted.norm())


def product_of(packed: PackedLinear) -> Product:
    """Where its weights lie; they must stay there."""
    bias = None if packed.bias is None else packed.bias.data_ptr()
    return Product(torch.ops.mkldnn.data_ptr(packed.weight), bias, packed.in_features, sum(packed.out_features))


def _multiply(kernels: Kernels, product: Product, x: Tensor) -> Tensor:
    y = torch.empty(len(x), product.out_features, dtype=x.dtype)
    omp = None if kernels.omp is None else ctypes.addressof(kernels.omp)
    kernels.multiply_alone(_Single(ctypes.addressof(product), omp, x.data_ptr(), y.data_ptr(), len(x), kernels.num_threads))
    return y
