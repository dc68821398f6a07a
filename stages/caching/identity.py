"""The identity of a cache: the fields that the recipe decides, and those that data set and teacher add."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_cache.frames import images
from data_cache.shards.encodings import ENCODINGS
from data_cache.shards.identity import FORMAT_VERSION, CacheIdentity, SplitFrames
from data_cache.sources.base import EditableSource, Source
from stages.caching.spec import TeacherCacheSpec
from stages.targets import relations
from stages.targets.binning import binning_definition
from stages.targets.spec import BinSpec
from stages.teacher.base import Teacher


def recipe_identity(
    source: str,
    train: tuple[str, ...],
    selection: tuple[str, ...],
    spec: TeacherCacheSpec,
    bin_spec: BinSpec,
    image_size: tuple[int, int],
) -> dict[str, object]:
    """The fields of the cache identity that a recipe decides; stage two checks them.

    Args:
        source: name of the data set.
        train, selection: selectors of the splits in the cache.
        spec, bin_spec: sections of the recipe.
        image_size: the student's input size.
    """
    stride = bin_spec.prob_stride
    settings = {"window_width": bin_spec.window, "bin_count": bin_spec.count, "bin_sigma": bin_spec.sigma}
    needed = ENCODINGS[bin_spec.encoding].settings
    return {
        "format_version": FORMAT_VERSION,
        "source": source,
        "train": train,
        "selection": selection,
        "image_size": image_size,
        "image_definition": images.DEFINITION,
        "prob_size": (image_size[0] // stride, image_size[1] // stride),
        "encoding": bin_spec.encoding,
        **{name: value if name in needed else None for name, value in settings.items()},
        "bin_definition": binning_definition(bin_spec),
        "relation_grid": relations.GRID,
        "relation_definition": relations.DEFINITION,
        "shard_frames": spec.shard_frames,
        "teacher_name": Path(spec.weights).name,
        "teacher_input_size": spec.input_size,
        # If tokens are stored, the teacher decides how many channels they have.
        **({} if spec.tokens else {"token_channels": 0}),
    }


def cache_identity(
    decided: Mapping[str, Any],
    source: Source,
    frames: SplitFrames,
    teacher: Teacher,
    knots: tuple[float, ...] | None = None,
) -> CacheIdentity:
    """The whole identity: the recipe's fields, the frames found, the teacher's weights, and the fitted knots.

    If tokens are stored, the teacher runs once on a black image to find their number of channels.
    """
    known = dict(decided)
    if "token_channels" not in known:
        black = torch.zeros(1, *teacher.input_size, 3, dtype=torch.uint8)
        known["token_channels"] = teacher(black).features.shape[1]
    return CacheIdentity(
        **known,
        camera_names=source.rig.camera_names,
        frame_count=len(frames.ordered),
        frames_sha256=frames.sha256(),
        teacher_licence=teacher.licence,
        teacher_weights_sha256=teacher.weights_sha256,
        teacher_preprocessing=teacher.preprocessing,
        bin_knots=knots,
        metadata_sha256=source.metadata_sha256(frames.ordered) if isinstance(source, EditableSource) else "",
    )
