"""What each encoding of the teacher's bins costs: bytes, divergence from the dense probabilities, and time."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fakes import random_record, tiny_identity

from data_cache.frames.views import load_images
from data_cache.shards.encodings import StoredBins, map_arrays
from data_cache.shards.identity import Resolved, SplitFrames
from data_cache.shards.writer import CacheWriter
from data_cache.sources.registry import open_source
from pipeline.weights.fetch import fetch_weights
from stages.compute.devices import resolve_precision
from stages.compute.resize import resize_rgb
from stages.evaluation.latency import measure
from stages.targets.bins import affine_invariant_map, closed_form_prob, decode, encode
from stages.targets.relations import GRID, pool_tokens, ring_relations
from stages.targets.space import to_disparity
from stages.targets.spec import BinSpec
from stages.teacher.transformers_depth import TransformersTeacher

pytestmark = pytest.mark.bench
CPU = torch.device("cpu")
VIEWS, SIZE = 6, (88, 160)
SPECS = [
    *(BinSpec(window=width) for width in (5, 6, 7, 8)),
    BinSpec(encoding="closed_form"),
    BinSpec(encoding="dense"),
]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a teacher says about one rig: u and relations."""

    of: str
    u: torch.Tensor
    relation: np.ndarray


def see_real_frame(data: Path) -> Seen:
    name = "depth-anything-v2-small"
    weights = fetch_weights(name)
    teacher = TransformersTeacher(
        weights.path,
        name=name,
        licence=weights.licence,
        weights_sha256=weights.sha256,
        input_size=(392, 700),
        device=CPU,
        precision=resolve_precision("auto", CPU),
    )
    native = load_images(open_source("pandaset", data / "pandaset").frame("002/05"))
    output = teacher(torch.from_numpy(np.stack([resize_rgb(rgb, teacher.input_size) for rgb in native])))
    u = affine_invariant_map(to_disparity(output.prediction, teacher.space), SIZE)
    relation = ring_relations(pool_tokens(output.features))
    return Seen(f"PandaSet 002/05 as {name} sees it", u, relation.numpy().astype(np.float16))


def see_noise() -> Seen:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(VIEWS, 1, 6, 10, generator=generator)
    disparity = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic")[:, 0]
    relation = ring_relations(pool_tokens(torch.randn(VIEWS, 384, *GRID, generator=generator)))
    return Seen("smooth noise", affine_invariant_map(disparity, SIZE), relation.numpy().astype(np.float16))


def compressed_bytes(folder: Path, spec: BinSpec, bins: StoredBins[torch.Tensor], seen: Seen) -> dict[str, int]:
    """Size of every array of one frame as the writer leaves it on disk."""
    frames = SplitFrames(("d/0",), ())
    identity = tiny_identity(
        frames,
        camera_names=tuple("abcdef"),
        prob_size=SIZE,
        relation_grid=GRID,
        encoding=spec.encoding,
        window_width=spec.window,
        bin_count=spec.count,
        bin_sigma=spec.sigma,
    )
    record = random_record(identity, 0)
    at_rest = map_arrays(lambda new, old: new.numpy().astype(old.dtype), bins, record.bins)
    writer = CacheWriter(folder, identity, Resolved("fp32", 6, 1), frames)
    receipt = writer.commit(0, [replace(record, bins=at_rest, relation=seen.relation)], {}, {})
    return {Path(name).parts[1]: stored.bytes for name, stored in receipt.files.items()}


def test_bench_encodings(tmp_path, capsys):
    data = os.environ.get("SURROUND_REAL_DATA")
    seen = see_real_frame(Path(data)) if data and os.environ.get("SURROUND_WEIGHTS") else see_noise()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for spec in SPECS:
        name = f"window {spec.window}" if spec.encoding == "window" else spec.encoding
        stored = encode(seen.u, spec)
        sizes = compressed_bytes(tmp_path / name, spec, stored, seen)
        dense, kept = closed_form_prob(seen.u.double(), spec), decode(stored, spec).double()
        kl = (torch.special.xlogy(kept, kept) - kept * dense.clamp(min=1e-300).log()).sum(1).mean()
        variation = (kept - dense).abs().sum(1).mean() / 2
        encoding = measure(lambda spec=spec: encode(seen.u, spec), CPU, warmup=3, repeats=20)
        decoding = measure(lambda stored=stored, spec=spec: decode(stored, spec), CPU, warmup=3, repeats=20)
        kilobytes = sum(size for array, size in sizes.items() if array.startswith("bin_")) / 1e3
        rows.append(
            f"| {name} | {kilobytes:.0f} | {kl:.1e} | {variation:.1e} | {encoding.p50_ms:.2f} | {decoding.p50_ms:.2f} |"
        )
    torch.set_num_threads(threads)
    with capsys.disabled():
        print(f"\n{seen.of}: one rig of six at 88 x 160, one thread; relations {sizes['relation'] / 1e3:.0f} kB")
        print("| encoding | kB | KL(stored, dense), nats | total variation | encode ms | decode ms |")
        print("| --- | --- | --- | --- | --- | --- |")
        print("\n".join(rows))
