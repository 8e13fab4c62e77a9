"""Variable-length attention on a CUDA device equals the padded products; never run so far, as no such machine was at hand."""

import pytest
import torch

from lorimer.model.attention import AttentionOptions, PackedSegments, PrefixGroup

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GROUPS = (PrefixGroup(prefix_len=40, suffix_lens=(5, 9, 30)), PrefixGroup(prefix_len=0, suffix_lens=(17, 64)))


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("num_keys", [1, 4])
def test_varlen_attention_equals_padded_products(window: int | None, num_keys: int) -> None:
    num_tokens = sum(group.num_tokens for group in GROUPS)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(num_tokens, 4, 64, generator=generator)
    key, value = (torch.randn(num_tokens, num_keys, 64, generator=generator) for _ in range(2))
    options = AttentionOptions(scaling=0.125, sliding_window=window, softcap=None)
    found = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        inputs = [tensor.to(device, dtype).requires_grad_() for tensor in (query, key, value)]
        output = PackedSegments(GROUPS, torch.device(device)).attend(0, *inputs, options)
        output.float().square().sum().backward()
        found.append([tensor.float().cpu() for tensor in (output.detach(), *(tensor.grad for tensor in inputs))])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=5e-2, atol=5e-2 * float(theirs.abs().max()))
