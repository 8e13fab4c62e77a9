"""kernels.c and decode.c, compiled once for the processor at hand and kept in the home folder; without a compiler torch does the work."""

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from ctypes import Structure, c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lorimer.config import home
from lorimer.errors import StorageError
from lorimer.model.machine import openmp
from lorimer.storage import digest_of, write_bytes

logger = logging.getLogger(__name__)

SOURCES = tuple(Path(__file__).with_name(name) for name in ("decode.c", "kernels.c"))
"""The first includes the second."""
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-lm")
COMPILERS = ("cc", "gcc", "clang")
COMPILE_SECONDS = 120
TRY = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).try_all())"
BLOCK = 128
MAX_LAYERS = 4  # that read one input
MAX_HEAD_DIM = 512
HEADS = 4  # that read keys and values together
DTYPES = (torch.bfloat16, torch.float32)


class Weights(Structure):
    """One layer's share of an adapter: addresses of a (rank, in) and of b (out / BLOCK, rank, BLOCK)."""

    _fields_ = (("a", c_void_p), ("b", c_void_p), ("rank", c_int32), ("scale", c_float))


class Part(Structure):
    """One adapter of one row."""

    _fields_ = (("weights", c_void_p), ("row", c_int32), ("scale", c_float))


class Adapted(Structure):
    """The rows of a step that go through adapters."""

    _fields_ = (
        ("parts", c_void_p),
        ("num_parts", c_int64),
        ("max_rank", c_int64),
        ("is_bf16", c_int64),
        ("num_threads", c_int64),
        ("low", c_void_p),
    )


class LayerGroup(Structure):
    """Layers that read the same input."""

    _fields_ = (("first_layer", c_int64), ("num_layers", c_int64), ("in_features", c_int64), ("out_features", c_int64 * MAX_LAYERS))


class _OpenMP(Structure):
    _fields_ = (("parallel", c_void_p), ("thread_num", c_void_p), ("num_threads", c_void_p))


class Call(Structure):
    """A group's input and outputs."""

    _fields_ = (
        ("adapted", c_void_p),
        ("group", c_void_p),
        ("omp", c_void_p),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("y", c_void_p * MAX_LAYERS),
        ("y_stride", c_int64 * MAX_LAYERS),
        ("next", c_int64),
    )


class Heads(Structure):
    """A query, key or value: (rows, heads, head_dim), contiguous but for its first dimension, and the gain of a norm over each head."""

    _fields_ = (("x", c_void_p), ("stride", c_int64), ("gain", c_void_p), ("eps", c_float))


class Attention(Structure):
    """One new token a row, and the blocks of the sequences they belong to."""

    _fields_ = (
        ("query", Heads),
        ("key", Heads),
        ("value", Heads),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("tables", c_void_p),
        ("lens", c_void_p),
        ("y", c_void_p),
        ("scores", c_void_p),
        ("places", c_void_p),
        ("omp", c_void_p),
        ("num_rows", c_int64),
        ("num_heads", c_int64),
        ("num_groups", c_int64),
        ("head_dim", c_int64),
        ("num_turned", c_int64),
        ("group_stride", c_int64),
        ("block_len", c_int64),
        ("max_blocks", c_int64),
        ("window", c_int64),
        ("max_len", c_int64),
        ("num_threads", c_int64),
        ("is_bf16", c_int64),
        ("scaling", c_float),
        ("softcap", c_float),
        ("next", c_int32),
    )


class _Choice(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("logits", "best", "omp")),
        *((name, c_int64) for name in ("num_rows", "n", "num_threads", "is_bf16", "next")),
    )


class Kernels:
    """The functions of kernels.c over tensors on the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._add_adapters = library.add_adapters
        self._add_adapters.argtypes, self._add_adapters.restype = [c_void_p], None
        self._attend = library.attend
        self._attend.argtypes, self._attend.restype = [c_void_p], None
        self._rms_norm = library.rms_norm
        self._rms_norm.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_float, c_int]
        self._rms_norm.restype = None
        self._add_and_norm = library.add_and_norm
        self._add_and_norm.argtypes = [c_void_p, c_void_p, c_void_p, c_float, c_void_p, c_float, c_void_p, c_int64, c_int64, c_int]
        self._add_and_norm.restype = None
        self._gate = library.gate
        self._gate.argtypes, self._gate.restype = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int, c_int], None
        self._decode, self._multiply_alone = library.decode, library.multiply_alone
        self._decode.argtypes, self._decode.restype = [c_void_p], None
        self._multiply_alone.argtypes, self._multiply_alone.restype = [c_void_p], None
        self._choose = library.choose
        self._choose.argtypes, self._choose.restype = [c_void_p], None
        self.can_decode = bool(library.can_decode())
        """Whether the processor has what decode.c needs."""
        gomp = openmp()
        names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
        self.omp = None if gomp is None else _OpenMP(*(ctypes.cast(getattr(gomp, name), c_void_p).value for name in names))

    @property
    def num_threads(self) -> int:
        """Threads that share a call's work."""
        return 1 if self.omp is None else torch.get_num_threads()

    def add_adapters(self, call: Call) -> None:
        """Add to a group's outputs what the adapters of a step make of its input."""
        self._add_adapters(ctypes.addressof(call))

    def attend(self, call: Attention) -> None:
        """Norm and turn queries and keys, keep keys and values in their blocks, and attend to all of each row's sequence."""
        self._attend(ctypes.addressof(call))

    def decode(self, step: Structure) -> None:
        """Take a step's rows through all layers; see compiled_decoder.py for what a step is."""
        self._decode(ctypes.addressof(step))

    def multiply_alone(self, single: Structure) -> None:
        """One packed product; see compiled_product.py."""
        self._multiply_alone(ctypes.addressof(single))

    def likeliest(self, logits: Tensor) -> Tensor:
        """logits (n, V), contiguous -> the place of each row's maximum (n), the first of equals."""
        best = torch.empty(len(logits), dtype=torch.int64)
        omp = None if self.omp is None else ctypes.addressof(self.omp)
        is_bf16 = logits.dtype == torch.bfloat16
        choice = _Choice(logits.data_ptr(), best.data_ptr(), omp, *logits.shape, self.num_threads, is_bf16, 0)
        self._choose(ctypes.addressof(choice))
        return best

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        """x (T, h) or (T, H, D), contiguous but for its first dimension, gain (h) in float32 -> x / rms(x) * gain, contiguous."""
        y = torch.empty(x.shape, dtype=x.dtype)
        num_heads = x.shape[1] if x.ndim == 3 else 1
        is_bf16 = x.dtype == torch.bfloat16
        self._rms_norm(x.data_ptr(), x.stride(0), gain.data_ptr(), y.data_ptr(), x.shape[0], num_heads, x.shape[-1], eps, is_bf16)
        return y

    def add_and_norm(self, hidden: Tensor, mixed: Tensor, mixed_norm: tuple[Tensor, float] | None, norm: tuple[Tensor, float]) -> Tensor:
        """hidden (T, h) += mixed (T, h), or its norm where it has one (gain and eps) -> the norm of the sum; all contiguous."""
        y = torch.empty_like(hidden)
        gain, eps = (None, 0.0) if mixed_norm is None else (mixed_norm[0].data_ptr(), mixed_norm[1])
        is_bf16 = hidden.dtype == torch.bfloat16
        num_rows, width = hidden.shape
        self._add_and_norm(
            hidden.data_ptr(), mixed.data_ptr(), gain, eps, norm[0].data_ptr(), norm[1], y.data_ptr(), num_rows, width, is_bf16
        )
        return y

    def gate(self, gate: Tensor, up: Tensor, *, is_silu: bool) -> Tensor:
        """gate and up (T, m), equally strided by row -> silu(gate) * up or, in its tanh form, gelu(gate) * up; contiguous."""
        y = torch.empty(gate.shape, dtype=gate.dtype)
        num_rows, width = gate.shape
        is_bf16 = gate.dtype == torch.bfloat16
        self._gate(gate.data_ptr(), up.data_ptr(), gate.stride(0), y.data_ptr(), num_rows, width, is_silu, is_bf16)
        return y


@cache
def load_kernels() -> Kernels | None:
    """The compiled functions, compiled now if they were not yet; None where that cannot be."""
    if sys.platform != "linux":
        return None
    try:
        path = home() / "kernels" / f"{_key()}.so"
        if not path.is_file():
            write_bytes(path, _compile())
        return Kernels(ctypes.CDLL(str(path)))
    except (OSError, StorageError, subprocess.SubprocessError, LookupError) as exc:
        logger.info("adapters are computed by torch alone, kernels.c could not be compiled: %s", exc)
        return None


def _key() -> str:
    """Names what a compiled file depends on: source, flags and processor, since a home folder may be shared by machines."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return digest_of([*(source.read_text() for source in SOURCES), FLAGS, cpu])


def _compile() -> bytes:
    """Compile, and try the result in a process of its own: one that the processor cannot run ends that process, not this one."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise LookupError(f"there is no C compiler ({', '.join(COMPILERS)})")
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "kernels.so")
        for command in ([compiler, str(SOURCES[0]), "-o", target, *FLAGS], [sys.executable, "-c", TRY, target]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
            if done.returncode:
                raise LookupError(f"{os.path.basename(command[0])} ended with {done.returncode}: {done.stderr[-300:].strip()}")
        return Path(target).read_bytes()
