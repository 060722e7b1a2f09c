"""Quantization of checkpoints: encode weights as integers and scales, decode them, and measure the errors.

    from quantize import Request, quantize, report

    request = Request(checkpoint="gpt-j-6b", scheme="symmetric-search", bits=4)
    print(report(request).totals)
    quantize(request)

What is exported is loaded when it is first used: importing the package alone is cheap.
"""

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

#: Module → what the package has of it.
_MODULES: Final = {
    "api": ("Quantized", "dequantize", "quantize", "report"),
    "error_report": ("ErrorReport",),
    "errors": ("InvalidRequestError", "QuantizeError"),
    "names": ("FORMAT_NAMES", "SCHEME_NAMES"),
    "request": ("Request",),
}

# Hidden from type checkers, for which every name would exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from reshard.lazy import export

        return export(__name__, _MODULES, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
