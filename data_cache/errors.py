"""Errors of data at rest. Each message says what was expected, what was found, where, and what to do."""


class DataError(Exception):
    """Base of every error that this package raises on purpose."""


class SourceError(DataError):
    """A data set is missing, empty or laid out unlike its format."""


class FrameError(DataError):
    """One frame cannot be used (damaged image, NaN calibration, empty LiDAR).

    Stage one quarantines the frame with this text and goes on.
    """
