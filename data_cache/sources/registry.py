"""Every data set by name. `open_source` is the only way to open one."""

from pathlib import Path

from data_cache.errors import SourceError
from data_cache.sources.base import MECHANICAL, Source

RENDERED = ("synthetic", "synthetic_town")
SOURCES = (*RENDERED, "ddad", "nuscenes", "pandaset", "rig_folder")


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
        root: data set folder; None for the RENDERED ones, which have none.
        version: which release, if `root` holds several (nuScenes); may be empty if it holds one.
        masks: folder of self-occlusion masks (DDAD); None to look in and beside the data set.
        lidar: one of LIDARS; the sensors whose points are taken (PandaSet, which has two).
        nearby_sweep_s: a keyframe without LiDAR takes the nearest sweep within this many seconds (nuScenes); 0 for
            none.

    Raises:
        SourceError: if the kind is unknown, has no such option, or the folder is not such a data set; the message says
            what was expected.
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
    # Each source is imported only when asked for: only the synthetic ones need a ray caster.
    if kind in RENDERED:
        if root is not None:
            raise SourceError(
                f"{kind}: expected no data folder, found {root}: its frames are rendered, not read; leave out"
                " --data, DATA and data.root"
            )
        from data_cache.sources.synthetic.source import SyntheticSource
        from data_cache.sources.synthetic.world import STREET, TOWN

        return SyntheticSource(TOWN if kind == TOWN.name else STREET)
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
