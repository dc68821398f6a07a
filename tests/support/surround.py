"""The `surround` command in this process, and the smallest recipe that goes through all stages."""

import re

import torch
from click.testing import CliRunner

from pipeline.cli.main import main
from support import tiny_encoder as tiny_encoder  # the recipe names it

RECIPE = """
[data]
source = "synthetic"
train = ["drive-00[:1]"]
test = ["drive-01[:1]"]
[teacher_cache]
weights = "{teacher}"
input_size = [42, 70]
shard_frames = 1
precision = "fp32"
runtime = "torch"
[bins]
prob_stride = 2
[student]
encoder = "resnet-tiny"
input_size = [32, 64]
pretrained = false
near_m = 0.5
far_m = 120.0
focal_px = 45.0
decoder_channels = 8
attention_width = 16
[train_student]
steps = 3
batch_rigs = 1
workers = 0
[eval]
pictures = 1
"""


def surround(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def recomputes_what_it_stored(text: str) -> bool:
    """What `cache verify --recompute` says: the same on one thread; on several, sums may round in another order."""
    found = re.search(r"probabilities differ by (\S+) on average", text)
    return found is not None and float(found[1]) <= (0 if torch.get_num_threads() == 1 else 2**-11)
