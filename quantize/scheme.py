"""Schemes: how a tensor is cut into groups, and by which formula each is encoded. Pure: no arithmetic here.

A scheme is a value that a recipe keeps: `msgspec.json.encode` writes it with its name, and `decode` with the
type `Scheme` reads it back. Shapes are those of a Linear's weight, [out, in].
"""

from typing import Final

import msgspec

from .errors import GroupSizeError, InvalidSchemeError

Shape = tuple[int, ...]


class _Named(msgspec.Struct, frozen=True, kw_only=True, tag_field="name", forbid_unknown_fields=True):
    """What all schemes have: their name is the tag."""

    @property
    def name(self) -> str:
        """By which a request names it, such as `symmetric-search`."""
        return str(self.__struct_config__.tag)

    @property
    def is_symmetric(self) -> bool:
        """Whether zero is encoded as 0, so that a scale alone decodes."""
        return True

    def _require(self, is_met: bool, needed: str) -> None:
        if not is_met:
            raise InvalidSchemeError(f"the scheme {self.name} {needed}")


class Moq(_Named, frozen=True, kw_only=True, tag="moq"):
    """DeepSpeed's MoQ (`quantize.groups.moq`): a number of groups per tensor.

    Attributes:
        bits: 2 to 8 per code.
        groups: chunks of the flattened tensor; weights that remain make more.
        mlp_extra_grouping: twice the groups where one dimension is exactly four times the other.
    """

    bits: int = 8
    groups: int = 64
    mlp_extra_grouping: bool = False

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidSchemeError: a setting that no formula has.
        """
        _require_bits(self, self.bits, range(2, 9))
        self._require(self.groups >= 1, f"cannot make {self.groups} groups; ask for 1 or more")

    def group_numel(self, shape: Shape) -> int:
        """The weights in each group of a tensor, but the last.

        Raises:
            GroupSizeError: there are more groups than weights.
        """
        rows, columns = shape
        is_doubled = self.mlp_extra_grouping and (rows == 4 * columns or columns == 4 * rows)
        groups = self.groups * (2 if is_doubled else 1)
        if groups > rows * columns:
            raise GroupSizeError(
                f"{rows * columns} weights cannot be cut into {groups} groups; ask for fewer `groups`"
            )
        return rows * columns // groups

    def scale_shape(self, shape: Shape) -> Shape:
        """(groups,), those of weights that remain among them."""
        rows, columns = shape
        return (-(-rows * columns // self.group_numel(shape)),)


class Rows(_Named, frozen=True, kw_only=True, tag="rows"):
    """DeepSpeed's GroupQuantizer (`quantize.groups.rows`): one scale for every so many rows.

    Attributes:
        bits: 2 to 8 per code.
        group_rows: rows per group; GroupQuantizer's `group_size`.
    """

    bits: int = 8
    group_rows: int = 1

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidSchemeError: a setting that no formula has.
        """
        _require_bits(self, self.bits, range(2, 9))
        self._require(self.group_rows >= 1, f"cannot make groups of {self.group_rows} rows")

    def group_numel(self, shape: Shape) -> int:
        """The weights in each group.

        Raises:
            GroupSizeError: the rows are no multiple of `group_rows`.
        """
        _require_divisor(shape[0], self.group_rows, "an output dimension", "rows")
        return self.group_rows * shape[1]

    def scale_shape(self, shape: Shape) -> Shape:
        """(groups,)."""
        return (shape[0] * shape[1] // self.group_numel(shape),)


class _AlongInput(_Named, frozen=True, kw_only=True):
    """One scale per row, or per `group_size` weights of one.

    Attributes:
        bits: per code.
        group_size: weights per group along the input dimension; None: a whole row.
    """

    bits: int = 8
    group_size: int | None = 128

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidSchemeError: a setting that no formula has.
        """
        _require_bits(self, self.bits, self._bits())
        _require_group(self, self.group_size)

    def _bits(self) -> range | tuple[int, ...]:
        return (4, 8)

    def group_numel(self, shape: Shape) -> int:
        """The weights in each group.

        Raises:
            GroupSizeError: `group_size` does not divide the input dimension.
        """
        if self.group_size is None:
            return shape[1]
        _require_divisor(shape[1], self.group_size, "an input dimension", "weights")
        return self.group_size

    def scale_shape(self, shape: Shape) -> Shape:
        """[out, in / group_size]."""
        return (shape[0], shape[1] // self.group_numel(shape))


class Groups(_AlongInput, frozen=True, kw_only=True, tag="groups"):
    """DeepSpeed's GroupQuantizer formula (`quantize.groups.rows`) along the input dimension."""

    def _bits(self) -> range:
        return range(2, 9)


class Symmetric(_AlongInput, frozen=True, kw_only=True, tag="symmetric"):
    """compressed-tensors' formula (`quantize.groups.symmetric`)."""


class SymmetricSearch(_AlongInput, frozen=True, kw_only=True, tag="symmetric-search"):
    """The same format with the scales of least squared error (`quantize.groups.search`)."""


class ZeroInference(_Named, frozen=True, kw_only=True, tag="zero-inference"):
    """ZeRO-Inference's asymmetric groups (`quantize.groups.zero_inference`).

    Attributes:
        bits: 8 or 4 per code.
        group_size: weights per group.
        dim: the dimension that groups run along; DeepSpeed's `group_dim`.
    """

    bits: int = 8
    group_size: int = 64
    dim: int = 1

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidSchemeError: a setting that no formula has.
        """
        _require_bits(self, self.bits, (4, 8))
        _require_group(self, self.group_size)
        self._require(self.dim in (0, 1), f"has no dimension {self.dim}; choose 0 (output) or 1 (input)")

    @property
    def is_symmetric(self) -> bool:
        """It has minima as well."""
        return False

    def group_numel(self, shape: Shape) -> int:
        """The weights in each group.

        Raises:
            GroupSizeError: `group_size` does not divide the dimension, or 4-bit codes do not pair up.
        """
        kind = ("an output", "an input")[self.dim]
        _require_divisor(shape[self.dim], self.group_size, f"{kind} dimension", "weights")
        if self.bits == 4 and shape[-1] % 2:
            raise GroupSizeError(
                f"4-bit codes pack in pairs along the input dimension, and {shape[-1]} is odd"
            )
        return self.group_size

    def scale_shape(self, shape: Shape) -> Shape:
        """As DeepSpeed keeps them: `dim` replaced by (groups, 1). Minima are the same."""
        self.group_numel(shape)
        groups = shape[self.dim] // self.group_size
        return (*shape[: self.dim], groups, 1, *shape[self.dim + 1 :])


class RowAbsmax(_Named, frozen=True, kw_only=True, tag="row-absmax"):
    """bitsandbytes' int8 (`quantize.groups.row_absmax`): one scale per row, `SCB`.

    Attributes:
        bits: 8.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidSchemeError: other bits than 8.
        """
        _require_bits(self, self.bits, (8,))

    def group_numel(self, shape: Shape) -> int:
        """The weights in each group: a row's."""
        return shape[1]

    def scale_shape(self, shape: Shape) -> Shape:
        """[out]."""
        return (shape[0],)


Scheme = Moq | Rows | Groups | Symmetric | SymmetricSearch | ZeroInference | RowAbsmax

#: Name → type.
SCHEMES: Final[dict[str, type[Scheme]]] = {
    str(kind.__struct_config__.tag): kind
    for kind in (Moq, Rows, Groups, Symmetric, SymmetricSearch, ZeroInference, RowAbsmax)
}


def _require_bits(scheme: _Named, bits: int, known: range | tuple[int, ...]) -> None:
    if bits not in known:
        raise InvalidSchemeError(
            f"the scheme {scheme.name} has no codes of {bits} bits; choose {', '.join(map(str, known))}"
        )


def _require_group(scheme: _Named, group_size: int | None) -> None:
    if group_size is not None and group_size < 1:
        raise InvalidSchemeError(f"the scheme {scheme.name} cannot make groups of {group_size} weights")


def _require_divisor(length: int, group: int, what: str, unit: str) -> None:
    if length % group:
        fitting = [g for g in (256, 128, 64, 32, 16, 8, 4, 2, 1) if length % g == 0]
        raise GroupSizeError(f"groups of {group} {unit} do not divide {what} of {length}; {fitting[0]} would")
