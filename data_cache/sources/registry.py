"""Every data set by name. `open_source` is the only door."""

from pathlib import Path

from data_cache.errors import SourceError
from data_cache.sources.base import MECHANICAL, Source

SOURCES = ("synthetic", "ddad", "nuscenes", "pandaset", "rig_folder")


def open_source(
    kind: str,
    root: Path | None,
    version: str = "",
    *,
    masks: Path | None = None,
    lidar: str = MECHANICAL,
    nearby_sweep_s: float = 0.0,
) -> Source:
    """Open a data set.

    Args:
        kind: one of SOURCES.
        root: data set folder; None for sources that live in memory.
        version: which of several releases under one root (nuScenes), empty where there is one.
        masks: folder of self-occlusion masks (DDAD); None to look beside the data set.
        lidar: of LIDARS, the sensors whose points are taken (PandaSet, the one that has two).
        nearby_sweep_s: how far from a keyframe without LiDAR a sweep may be that stands in (nuScenes), 0 for none.

    Raises:
        SourceError: if the kind is unknown, has no such option, or the folder is not such a data set (with what was
            looked for).
    """
    if kind not in SOURCES:
        raise SourceError(f"unknown source {kind!r}; it is one of {', '.join(SOURCES)}")
    for name, changed, only in (
        ("masks", masks is not None, "ddad"),
        ("lidar", lidar != MECHANICAL, "pandaset"),
        ("nearby_sweep_s", nearby_sweep_s > 0, "nuscenes"),
    ):
        if changed and kind != only:
            raise SourceError(f"{kind}: data.{name} is for {only} alone; leave it out")
    # Each source is imported only when it is asked for: the synthetic one needs a ray caster, the others do not.
    if kind == "synthetic":
        from data_cache.sources.synthetic.source import SyntheticSource

        return SyntheticSource()
    if root is None:
        raise SourceError(f"{kind}: no data folder given; pass --data DIR (make: DATA=DIR) or set data.root")
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise SourceError(f"{kind}: expected a data folder, found {found} at {root}; pass --data DIR (make: DATA=DIR)")
    if kind == "ddad":
        from data_cache.sources.ddad.source import DdadSource

        return DdadSource(root, masks)
    if kind == "nuscenes":
        from data_cache.sources.nuscenes import NuscenesSource

        return NuscenesSource(root, version, nearby_sweep_s)
    if kind == "pandaset":
        from data_cache.sources.pandaset import PandasetSource

        return PandasetSource(root, lidar)
    from data_cache.sources.rig_folder.source import RigFolderSource

    return RigFolderSource(root)
