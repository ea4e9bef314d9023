"""Errors meant for people: what was wrong, where, and what to do.

Everything that a user can cause ends in one of these. The command line prints the message alone,
without a traceback, and exits with status 2.
"""


class MogaoError(Exception):
    """Base of all errors that a user can cause."""


class ConfigError(MogaoError):
    """A config field that is unknown, of the wrong type, or of an impossible value."""


class DocumentError(MogaoError):
    """A document, or an item of one, that cannot be used (missing image, unknown role, ...)."""


class RequestError(MogaoError):
    """A request to the sampler that cannot be served (options out of range, empty prompt, ...)."""


class DataError(MogaoError):
    """A data source as a whole that cannot be used (missing folder, too many broken records)."""


class CheckpointError(MogaoError):
    """A checkpoint or a weights file that is missing, damaged, or of another config."""


class EnvironmentProblem(MogaoError):
    """The machine will not do it: an unwritable folder, a full disk, too few devices."""
