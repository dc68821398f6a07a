"""What a perfect map of a student's size would score at LiDAR returns: no student of that size can be expected below.

`make bench ARGS="-k bench_resolution"`. The truth of synthetic drives is averaged over the pixels of a smaller map, in
1 / depth, stretched bilinearly and compared with the LiDAR as an evaluation does it (protocol `surrounddepth`). At the
size of the images what is left is the LiDAR's own noise, and returns from what another surface hides.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from pipeline.recipe.config import load_recipe
from pipeline.runs.splits import open_data, select_frames
from stages.evaluation.metrics import abs_rel
from stages.evaluation.protocol_scores import image_pixels
from stages.evaluation.protocols import PROTOCOLS

pytestmark = pytest.mark.bench
SIZES = ((48, 80), (96, 160), (192, 320))
SKY_M = 1000.0


def test_bench_resolution(capsys):
    recipe = load_recipe("evidence")
    source, protocol = open_data(recipe.data), PROTOCOLS["surrounddepth"]
    frame_ids = select_frames(recipe.data, source, recipe.data.selection)
    errors: dict[str, list[float]] = {}
    for frame in map(source.frame, frame_ids):
        assert frame.load_sweep is not None
        assert frame.load_truth_m is not None
        sweep = frame.load_sweep()
        for view, load_truth_m in zip(frame.views, frame.load_truth_m, strict=True):
            truth_m = torch.from_numpy(load_truth_m()).float()
            inverse = 1 / torch.where(truth_m > 0, truth_m, SKY_M)
            maps = {"images": inverse} | {
                f"{h} x {w}": interpolate(inverse[None, None], size=(h, w), mode="area")[0, 0] for h, w in SIZES
            }
            for name, per_m in maps.items():
                depth_m = (1 / per_m).numpy()
                range_m = protocol.range_of(source.name)
                pixels = image_pixels(view, sweep, depth_m, None, protocol, range_m, recipe.student.input_size)
                if pixels is not None:
                    predicted_m = pixels.predicted_m.clip(*range_m)
                    errors.setdefault(name, []).append(abs_rel(predicted_m=predicted_m, truth_m=pixels.truth_m))
    with capsys.disabled():
        print(f"\nAbsRel of a perfect map at LiDAR returns, {len(errors['images'])} images of selection drives")
        for name, values in errors.items():
            print(f"  {name:10} {np.mean(values):.4f}")
