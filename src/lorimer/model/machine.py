"""What this machine can do, measured in a fraction of a second: which precision to compute in, and how fast products run."""

import ctypes
import mmap
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ROWS, INNER, OUTER = 512, 640, 2048  # the shape of a small base's layers at a good batch


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def keep_freed_memory() -> None:
    """Let the process keep freed blocks instead of giving them back to the kernel and faulting them in again page by page.

    Activations and logits are freed and allocated anew in every step; on virtual machines the page faults cost a quarter of
    a training step (dev/LOG.md). Only glibc has the switch; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def prepare_for_many_shapes() -> None:
    """Let torch keep what it prepares for more shapes of products, as several adapters in one stream have them (see `model/__init__.py`).

    Has an effect only before the process's first product.
    """
    os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "192", "384"


def give_back_freed_memory() -> None:
    """Return what is free now to the kernel: reading a large tokenizer leaves hundreds of megabytes in pieces too small to use again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@cache
def openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch computes with, where torch brings GNU's."""
    for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        return ctypes.CDLL(str(path))
    return None


def give_back_threads() -> None:
    """End the threads that torch's products started for the calling thread; the next product starts them again.

    Once a process has more of them than processors, all of them sleep between products instead of waiting awake, and decoding takes 1.4
    times as long (GNU's libgomp, GOMP_SPINCOUNT; dev/LOG.md): only the thread that steps an engine may have some.
    """
    pause = getattr(openmp(), "omp_pause_resource_all", None)
    if pause is not None:
        pause(1)  # omp_pause_soft (OpenMP 5.0, 2.15): nothing but the threads is lost


def give_back_pages(tensor: Tensor) -> None:
    """Give the kernel the pages that a tensor alone lies in; nobody may read it after that.

    Weights that were mapped from their file would stay resident for as long as any of the file is used.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" and tensor.device.type == "cpu" else None
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = tensor.data_ptr() + tensor.numel() * tensor.element_size() - first
    if advise is not None and tensor.is_contiguous() and length >= mmap.PAGESIZE:
        advise(ctypes.c_void_p(first), ctypes.c_size_t(length // mmap.PAGESIZE * mmap.PAGESIZE), mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The figures that plans and choices rest on."""

    name: str
    """Its processor and the cores in use, as figures of past runs are kept under."""
    device: str
    num_cores: int
    memory_bytes: int
    bf16_flops_per_second: float
    fp32_flops_per_second: float

    @property
    def dtype(self) -> torch.dtype:
        """bf16 where its products are at least as fast as float32's (they halve the memory), else float32."""
        return torch.bfloat16 if self.bf16_flops_per_second >= self.fp32_flops_per_second else torch.float32

    @property
    def flops_per_second(self) -> float:
        """Of the chosen precision."""
        return max(self.bf16_flops_per_second, self.fp32_flops_per_second)


@cache
def probe() -> Machine:
    """Measure once per process."""
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Machine(
        name=f"{_processor(device)}, {torch.get_num_threads()} cores",
        device=device,
        num_cores=torch.get_num_threads(),
        memory_bytes=_memory_bytes(device),
        bf16_flops_per_second=_product_rate(torch.bfloat16, device),
        fp32_flops_per_second=_product_rate(torch.float32, device),
    )


def _processor(device: str) -> str:
    """The model's name, where the system tells."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _product_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of one matrix product; the best of five, since others use the machine too."""
    x = torch.ones(ROWS, INNER, dtype=dtype, device=device)
    w = torch.ones(OUTER, INNER, dtype=dtype, device=device)
    return 2 * ROWS * INNER * OUTER / min(_seconds(lambda: x @ w.T) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
