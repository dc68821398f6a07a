"""Errors that are meant for the user. Each says what was expected, what was found, where, and what to do."""


class SurroundError(Exception):
    """Base of every error that this program raises on purpose; anything else is a bug."""


class SourceError(SurroundError):
    """A data set is missing, empty or laid out unlike its format."""


class FrameError(SurroundError):
    """One frame cannot be used (damaged image, NaN calibration, empty LiDAR).

    Stage one quarantines the frame with this text and goes on.
    """


class SettingError(SurroundError, ValueError):
    """A setting is impossible on this machine or with these weights."""


class SurroundWarning(UserWarning):
    """Something to know of that nothing has to be done about; the command line shows it as one line."""
