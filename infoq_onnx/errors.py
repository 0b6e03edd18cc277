"""Every error that a user can cause or mend, in one tree.

::

    InfoQError
    ├── ModelError                the ONNX file cannot be used
    ├── DataError                 the images, arrays or labels cannot be used
    ├── SettingsError             a setting's value makes no sense here
    ├── AnalysisError             the analysis is missing, in use, or of something else
    ├── InfeasibleBudgetError     no allocation meets the bounds
    ├── VerificationError         the emitted model disagrees with the simulation
    ├── OutputError               a result cannot be written
    ├── WorkerError               processes or machines that run trials die, or cannot be had
    └── MissingDependencyError    an optional package or download is missing

The message is one line: what was found, where, and what to do about it. It names settings in backticks, `samples`,
and says nothing of the command line, which shows them as its options (`cli.wording`) and chooses the exit code
(`cli.exit_codes`). Any other exception that escapes is a defect of infoq-onnx.
"""

from collections.abc import Mapping


class InfoQError(Exception):
    """Base of every error this package raises on purpose."""


class ModelError(InfoQError):
    """The ONNX file is missing, broken, or not something infoq-onnx can quantize."""


class DataError(InfoQError):
    """The images, arrays or labels are missing, broken, or do not fit the model."""


class SettingsError(InfoQError):
    """A setting has a value that makes no sense for this model or this data."""


class AnalysisError(InfoQError):
    """The analysis is missing, in use by another process, or was made of something else."""


class InfeasibleBudgetError(InfoQError):
    """No choice of bit-widths meets every bound; the message names the smallest reachable value."""

    reachable: Mapping[str, float]
    """By metric, the best that each bound that is out of reach could be, what its overhead adds not counted."""

    def __init__(self, message: str, reachable: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.reachable = reachable or {}


class VerificationError(InfoQError):
    """The emitted model does not compute what the simulation computes; no file is left."""


class OutputError(InfoQError):
    """A result cannot be written where it was asked for."""


class WorkerError(InfoQError):
    """The processes that run trials died, again and again, or the machines for them cannot be had."""


class MissingDependencyError(InfoQError):
    """An optional package, or a file that would have to be downloaded, is not there."""
