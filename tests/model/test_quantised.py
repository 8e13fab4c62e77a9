"""Weights in few bits: near what they were, as small as said, and without a word from the library that packs them."""

import logging
import subprocess
import sys

import pytest
import torch

from lorimer.model.quantised import quantise

LOGGER = "bitsandbytes.backends.cpu.ops"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int8_is_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = quantise(weight, "int8")
    step = weight.float().abs().amax(1, keepdim=True) / 127
    rounding = 2 * torch.finfo(dtype).eps * weight.float().abs()
    assert bool(((packed.dequantise().float() - weight.float()).abs() <= 0.5 * step + rounding).all())
    assert packed.dequantise().dtype == dtype
    assert packed.num_bytes == 16 * 128 + 16 * dtype.itemsize


def test_row_of_zeros_stays_zeros() -> None:
    assert not quantise(torch.zeros(2, 64), "int8").dequantise().any()


def test_nf4_takes_four_bits_and_a_scale() -> None:
    pytest.importorskip("bitsandbytes")
    assert quantise(torch.randn(16, 128), "nf4").num_bytes == 16 * 128 / 2 + 4 * 16 * 128 / 64


def test_only_the_notice_of_a_kernel_not_used_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(LOGGER)
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", ImportError("No module named 'kernels'"))
    logger.warning("Failed to load the library: %s", "cpu")
    assert [record.getMessage() for record in caplog.records] == ["Failed to load the library: cpu"]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["bitsandbytes", "peft"])
def test_importing_says_nothing(package: str) -> None:
    pytest.importorskip(package)
    code = f"import lorimer.model.quantised, {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
