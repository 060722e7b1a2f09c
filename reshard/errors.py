"""Every error that reading a checkpoint can raise."""


class CheckpointError(Exception):
    """Base class: a checkpoint cannot be used; the message is a sentence for the user."""


class UnknownDtypeError(CheckpointError):
    """A dtype name that no table knows."""


class MissingFileError(CheckpointError):
    """A file that the checkpoint needs is not there."""


class DamagedFileError(CheckpointError):
    """A file is there but its bytes contradict its format."""
