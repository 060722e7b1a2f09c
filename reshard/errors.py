"""Every error that reading, cutting or writing a checkpoint can raise."""


class CheckpointError(Exception):
    """Base class: a checkpoint cannot be used; the message is a sentence for the user."""


class UnknownDtypeError(CheckpointError):
    """A dtype name that no table knows."""


class MissingFileError(CheckpointError):
    """A file that the checkpoint needs is not there."""


class DamagedFileError(CheckpointError):
    """A file is there but its bytes contradict its format."""


class AmbiguousSourceError(CheckpointError):
    """A folder that is no checkpoint of one known format, or of two at once."""


class UnknownArchitectureError(CheckpointError):
    """A model family, or a tensor of one, that no table describes."""


class CannotSplitError(CheckpointError):
    """A tensor that cannot be cut at the degree asked for."""


class UnsupportedTargetError(CheckpointError):
    """A format that cannot hold this model, or not at this degree."""


class InconsistentShardsError(CheckpointError):
    """Shards that contradict each other: of different models, degrees or ranks, or with one missing."""


class OutputExistsError(CheckpointError):
    """The output exists and was not written by this tool, or may not be replaced."""


class DiskSpaceError(CheckpointError):
    """The disk does not hold what would be written."""


class MemoryBudgetError(CheckpointError):
    """The memory budget does not hold the smallest buffers."""


class UnsupportedSourceError(CheckpointError):
    """A source that this tool does not read."""
