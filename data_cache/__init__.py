"""Data at rest: rigs and frames, the data sets they come from, and the Zarr cache of the teacher's targets."""
