"""`surround rig export`: writes the frames of a recipe as a rig folder."""

from pathlib import Path

from data_cache.sources.rig_folder.writing import RigExport, export_rig
from pipeline.recipe.config import Recipe
from pipeline.runs.splits import open_data, select_frames
from stages.compute.progress import progress_bar


def run_rig_export(recipe: Recipe, out: Path) -> RigExport:
    """Write every frame of data.train, data.selection and data.test, within the limits, to a new rig folder.

    Raises:
        SourceError: if the data set or a selector of the recipe cannot be used, or `out` holds a rig already.
        WriteError: if the folder cannot be written.
    """
    source = open_data(recipe.data)
    data = recipe.data
    splits = [select_frames(data, source, selectors) for selectors in (data.train, data.selection, data.test)]
    frame_ids = tuple(dict.fromkeys(frame_id for split in splits for frame_id in split))
    with progress_bar(len(frame_ids), 0, "rig export", "frame") as bar:
        return export_rig(source, frame_ids, out, bar.update)
