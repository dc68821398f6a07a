"""Frames of surround rigs at rest: rigs, sources, and the Zarr cache of what a teacher said about them."""
