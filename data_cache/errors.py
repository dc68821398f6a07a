"""Errors for the user. Each says what was expected, what was found, where, and what to do."""


class SurroundError(Exception):
    """Base of every error that this program raises on purpose; anything else is a bug."""


class SourceError(SurroundError):
    """A data set is missing, empty, or not laid out as its format requires."""


class FrameError(SurroundError):
    """One frame cannot be used (damaged image, NaN calibration, empty LiDAR).

    Stage one quarantines the frame, with this text as the reason, and goes on.
    """


class SettingError(SurroundError, ValueError):
    """A setting is impossible on this machine or with these weights."""


class SurroundWarning(UserWarning):
    """A notice that needs no action; the command line shows it as one line."""
