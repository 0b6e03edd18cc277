"""All errors that a user can cause or fix, in one hierarchy.

::

    InfoQError
    ├── ModelError                the ONNX file cannot be used
    ├── DataError                 the images, arrays or labels cannot be used
    ├── SettingsError             the value of a setting is invalid
    ├── AnalysisError             the analysis is missing, in use, or does not match
    ├── InfeasibleBudgetError     no allocation meets the bounds
    ├── VerificationError         the emitted model disagrees with the simulation
    ├── TrainingError             fine-tuning did not improve the model
    ├── OutputError               a result cannot be written
    ├── WorkerError               processes or machines that run trials die or are not available
    └── MissingDependencyError    an optional package or download is missing

The message is one line that states the problem, its location and the remedy. It names settings by `setting` and does
not refer to the command line. The command line replaces the settings by its options (`cli.wording`) and chooses the
exit code (`cli.exit_codes`). Any other exception that escapes is a defect of infoq-onnx.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

MARK = "\u2060"
"""Word joiner, an invisible character: it stands in front of the settings that a message names."""


def setting(name: str) -> str:
    """Name a setting, or a function of the library, in a message: in backticks, behind `MARK`.

    The mark tells the name apart from text of the user's that looks the same, such as a file called `samples`.
    """
    return f"{MARK}`{name}`"


def enumerated(parts: Sequence[str], word: str = "and") -> str:
    """Join parts of a message: "a", "a and b", "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} {word} {last}" if first else last


class InfoQError(Exception):
    """Base class of all errors that this package raises on purpose."""

    @property
    def marked(self) -> str:
        """The message with `MARK` in front of settings, for the command line and for messages that contain it."""
        return super().__str__()

    def __str__(self) -> str:
        return self.marked.replace(MARK, "")


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Put what a block is about, such as a file or a setting, in front of errors in the model or in a setting.

    Raises
    ------
    ModelError, SettingsError
        The block raised one.
    """
    try:
        yield
    except (ModelError, SettingsError) as error:
        raise type(error)(f"{what}: {error.marked}") from error


class ModelError(InfoQError):
    """The ONNX file is missing or damaged, or infoq-onnx cannot quantize it."""


class DataError(InfoQError):
    """The images, arrays or labels are missing or damaged, or do not fit the model."""


class SettingsError(InfoQError):
    """The value of a setting is invalid, in general or for this model or data."""


class AnalysisError(InfoQError):
    """The analysis is missing, is in use by another process, or belongs to another model or other images."""


class InfeasibleBudgetError(InfoQError):
    """No choice of bit-widths meets every bound. The message states the best reachable value."""

    reachable: Mapping[str, float]
    """Metric → best reachable value without overhead, for each bound that cannot be met."""
    ways: tuple[str, ...]
    """By what else all bounds could be met, apart from a looser budget and fewer pins, as the message has it."""

    def __init__(self, message: str, reachable: Mapping[str, float] | None = None, ways: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reachable = reachable or {}
        self.ways = ways


class VerificationError(InfoQError):
    """The emitted model does not compute what the simulation computes. The file is removed."""


class TrainingError(InfoQError):
    """Fine-tuning did not improve the model on held-out images. No file was written."""


class OutputError(InfoQError):
    """A result cannot be written to the requested location."""


class WorkerError(InfoQError):
    """The processes that run trials died repeatedly, or the machines for them are not available."""


class MissingDependencyError(InfoQError):
    """An optional package, or a file that has to be downloaded, is missing."""
