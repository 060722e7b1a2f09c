"""How loops are compiled."""

from collections.abc import Callable
from typing import Any

import numba

_Loop = Callable[..., Any]


def compiled(loop: _Loop) -> _Loop:
    """The loop, compiled for the dtypes that it meets, without the GIL, and cached beside its module.

    numba's cache looks at that module alone: after a change of what it calls elsewhere, change it as well.
    """
    made: _Loop
    try:
        made = numba.njit(nogil=True, cache=True, error_model="numpy")(loop)
    except RuntimeError:
        # No folder can be written to, neither beside the module nor the user's: compile anew.
        made = numba.njit(nogil=True, error_model="numpy")(loop)
    return made


def inlined(loop: _Loop) -> _Loop:
    """A part of compiled loops, compiled into each of them: a call costs as much as a short group does."""
    made: _Loop = numba.njit(nogil=True, error_model="numpy", inline="always")(loop)
    return made
