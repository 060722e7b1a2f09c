"""What a checkpoint contains and how its tensors are cut: any degree and format to any other.

    from pathlib import Path

    import reshard

    request = reshard.Request(source="model", output=Path("model-tp4"), degrees=(4,))
    reshard.dry_run(request)  # what would be written, and who would load it
    reshard.reshard(request)
    reshard.verify("model-tp4", against="model")
    engine = reshard.load_autotp(Path("model-tp4"), dtype=torch.bfloat16)  # in every rank's process

Importing the package imports nothing else; a name is imported from its module when it is first used, and the
loaders' runtimes with it. Every error about a checkpoint or a request is a `CheckpointError`; the classes for
single causes are in `reshard.errors`. Errors name the fields of a request between backticks.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .compatibility import Answer
    from .errors import CheckpointError
    from .job import Job, Request
    from .loaders.autotp import load_autotp
    from .loaders.kernel_injection import load_kernel_injection
    from .loaders.transformers_tp import load_transformers_tp
    from .preview import DryRun, FileSize, Span, TensorMap, dry_run
    from .run import Report, reshard
    from .verification import Verified, verify

    __version__: str

__all__ = [
    "Answer",
    "CheckpointError",
    "DryRun",
    "FileSize",
    "Job",
    "Report",
    "Request",
    "Span",
    "TensorMap",
    "Verified",
    "__version__",
    "dry_run",
    "load_autotp",
    "load_kernel_injection",
    "load_transformers_tp",
    "reshard",
    "verify",
]

#: Module → what the package has of it.
_MODULES: Final = {
    "compatibility": ("Answer",),
    "errors": ("CheckpointError",),
    "job": ("Job", "Request"),
    "loaders.autotp": ("load_autotp",),
    "loaders.kernel_injection": ("load_kernel_injection",),
    "loaders.transformers_tp": ("load_transformers_tp",),
    "preview": ("DryRun", "FileSize", "Span", "TensorMap", "dry_run"),
    "run": ("Report", "reshard"),
    "verification": ("Verified", "verify"),
}

# Hidden from type checkers, for which every name would exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from .lazy import export

        return export(__name__, _MODULES, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
