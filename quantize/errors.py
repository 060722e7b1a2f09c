"""Every error that encoding or decoding weights can raise."""

from reshard.errors import CheckpointError


class QuantizeError(CheckpointError):
    """Base class: a tensor cannot be quantized as asked; the message is a sentence for the user."""


class InvalidRequestError(QuantizeError):
    """A request whose fields do not go together; the message names them in backticks."""


class InvalidSchemeError(QuantizeError):
    """A scheme whose settings contradict each other or that no formula has."""


class GroupSizeError(QuantizeError):
    """Groups that do not tile a tensor."""


class UnsupportedBlockError(QuantizeError):
    """An array that the kernels do not take: another dtype, shape or memory layout."""


class NonfiniteWeightError(QuantizeError):
    """A weight that is NaN or infinite.

    Attributes:
        index: its place in the block, in row-major order. The caller, who knows what the block was cut from,
            names the tensor.
    """

    def __init__(self, index: int) -> None:
        """Say where."""
        super().__init__(f"the weight at position {index} is NaN or infinite, which no integer can stand for")
        self.index = index


class ScaleOverflowError(QuantizeError):
    """A group of finite weights so large that its scale is not finite.

    Attributes:
        group: the group's place among the block's groups.
        limit: what its weights exceed, in words.
    """

    def __init__(self, group: int, limit: str) -> None:
        """Say which, and why."""
        super().__init__(f"the weights of group {group} exceed {limit}, and could not be decoded")
        self.group, self.limit = group, limit


class UnknownPatternError(QuantizeError):
    """A pattern of names that matches no tensor: most likely a typing error."""


class NothingToQuantizeError(QuantizeError):
    """A checkpoint, or a choice, without a single weight to encode."""


class EvaluationError(QuantizeError):
    """A model that could not be run: its process failed, or was killed for want of memory."""
