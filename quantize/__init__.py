"""Quantization of checkpoints: encode weights as integers and scales, decode them, and measure the errors.

    from quantize import Request, quantize, report

    request = Request(checkpoint="gpt-j-6b", scheme="symmetric-search", bits=4)
    print(report(request).totals)
    quantize(request)

What is exported is loaded when it is first used: importing the package alone is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .api import Quantized, dequantize, quantize, report
    from .error_report import ErrorReport
    from .errors import InvalidRequestError, QuantizeError
    from .names import FORMAT_NAMES, SCHEME_NAMES
    from .request import Request

    __version__: str

__all__ = [
    "FORMAT_NAMES",
    "SCHEME_NAMES",
    "ErrorReport",
    "InvalidRequestError",
    "QuantizeError",
    "Quantized",
    "Request",
    "__version__",
    "dequantize",
    "quantize",
    "report",
]

#: Name → the submodule that has it.
_EXPORTS: Final = {
    "FORMAT_NAMES": "names",
    "SCHEME_NAMES": "names",
    "ErrorReport": "error_report",
    "InvalidRequestError": "errors",
    "QuantizeError": "errors",
    "Quantized": "api",
    "Request": "request",
    "dequantize": "api",
    "quantize": "api",
    "report": "api",
}


def __getattr__(name: str) -> Any:
    """Load what is exported, once."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("offload-planner")
    elif name in _EXPORTS:
        value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Exports, loaded or not."""
    return sorted({*globals(), *__all__})
