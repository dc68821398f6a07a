"""What a stored window costs: divergence from the dense probabilities, and time."""

import pytest
import torch

from stages.bins import BinSpec, closed_form_prob, decode_window, encode_window
from stages.latency import measure

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [4, 5, 6, 7, 8])
def test_bench_window(width, capsys):
    spec = BinSpec(window=width)
    u = torch.rand(6, 88, 160, generator=torch.Generator().manual_seed(0))
    dense = closed_form_prob(u, spec)
    stored = encode_window(dense, width)
    decoded = decode_window(stored, spec.count)
    kl = (torch.special.xlogy(decoded, decoded) - decoded * dense.clamp(min=1e-30).log()).sum(1).mean()
    variation = (decoded - dense).abs().sum(1).mean() / 2
    encode = measure(lambda: encode_window(closed_form_prob(u, spec), width), CPU, warmup=3, repeats=20)
    decode = measure(lambda: decode_window(stored, spec.count), CPU, warmup=3, repeats=20)
    raw_kb = (stored.first.numel() + stored.prob.numel()) / 1e3
    with capsys.disabled():
        print(
            f"\nwindow {width}: KL(stored, dense) {kl:.1e} nats, total variation {variation:.1e},"
            f" {raw_kb:.0f} kB per rig before compression,"
            f" encode {encode.p50_ms:.1f} ms, decode {decode.p50_ms:.1f} ms per rig of six at 88 x 160"
        )
