"""What a criterion is: a function from what it declares to need to scores.

::

    @criterion(source="arXiv 0000.00000", needs=("weights", "grids"))
    def spread(context: Context, *, power: float = 2.0) -> list[Score]:
        "One line that says what it scores."

Keyword-only parameters with a default are its options: `infoq-onnx score --criterion spread --power 3`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from infoq_onnx.errors import SettingsError
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Candidate, Network, Observer, Score, Trial, Unit, units_of

Need = Literal["weights", "grids", "activations", "trials", "labels", "gradients"]
NEEDS: tuple[Need, ...] = get_args(Need)

PASSES: Mapping[Need, str] = {
    "trials": "the trials of analyze",
    "activations": "1 forward",
    "gradients": "1 forward, 1 backward",
}
"""How often the images go through the network for each need; the others take none."""

OptionValue = bool | int | float | str

Batch = Mapping[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Option:
    """A setting of one criterion."""

    default: OptionValue
    help: str


@dataclass(frozen=True)
class Scored:
    """What a criterion returns, where it has more to tell than scores."""

    scores: Sequence[Score]
    observers: Sequence[Observer] = ()


class Context:
    """What a criterion may look at: what it declared to need, and nothing else. Each is made when it is first used.

    Parameters
    ----------
    criterion : whom it is for
    network : the network's layers and groups
    bits : widths that scores are wanted for, without the baseline's 8
    sources : what makes each need
    """

    def __init__(
        self,
        criterion: Criterion,
        network: Network,
        bits: Sequence[int],
        sources: Mapping[Need, Callable[[], Any]],
    ) -> None:
        self.network = network
        self.bits = tuple(b for b in bits if b != BASELINE_BITS)
        self._criterion, self._sources = criterion, sources
        self._made: dict[Need, Any] = {}

    @property
    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """Float weights by layer, as the network has them after equalisation."""
        return self._get("weights")  # type: ignore[no-any-return]

    @property
    def grids(self) -> GridTable:
        """Every grid: scales of weights, quantizers of activations, at each width."""
        return self._get("grids")  # type: ignore[no-any-return]

    def activations(self) -> Iterator[Batch]:
        """Yield what the tensor of each activation group holds in the float network, [n, …], batch by batch."""
        yield from self._get("activations")()

    @property
    def trials(self) -> Sequence[Trial]:
        """Every trial that `analyze` measured."""
        return self._get("trials")[0]  # type: ignore[no-any-return]

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The tensors that trials were observed at, with what the baseline tells there; comes with `trials`."""
        return self._get("trials")[1]  # type: ignore[no-any-return]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each image [N], in the order of `activations`: true, or the float network's where none is known."""
        return self._get("labels")  # type: ignore[no-any-return]

    def _get(self, need: Need) -> Any:
        if need not in self._criterion.needs:
            raise SettingsError(f"criterion {self._criterion.name} uses {need}, which it does not declare to need")
        if need not in self._made:
            self._made[need] = self._sources[need]()
        return self._made[need]


@dataclass(frozen=True)
class Criterion:
    """A way to score how much worse the network gets with one unit at fewer bits."""

    name: str
    summary: str
    source: str
    """Where it is published."""
    needs: frozenset[Need]
    options: Mapping[str, Option]
    function: Callable[..., Scored | Sequence[Score]]
    package: str = ""
    """Distribution and version that it comes from, where it was loaded from one."""

    @property
    def passes(self) -> str:
        """How often the images go through the network."""
        return ", ".join(PASSES[need] for need in NEEDS if need in self.needs and need in PASSES) or "none"

    def is_cheap(self) -> bool:
        """Whether it needs no further pass over the images, once `analyze` is done."""
        return not self.needs & {"activations", "gradients", "labels"}

    def settings(self, given: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Return all options with their values: those given, and the defaults of the others.

        Raises
        ------
        SettingsError
            There is no such option, or the value is of another kind.
        """
        values = {name: option.default for name, option in self.options.items()}
        for name, value in given.items():
            if name not in values:
                has = f"its options are {', '.join(values)}" if values else "it has none"
                raise SettingsError(f"criterion {self.name} has no option {name}: {has}")
            if isinstance(values[name], float) and type(value) is int:
                value = float(value)
            if type(value) is not type(values[name]):
                wanted = type(values[name]).__name__
                raise SettingsError(f"criterion {self.name}: {name} is {value!r}, and has to be of type {wanted}")
            values[name] = value
        return values

    def score(self, context: Context, options: Mapping[str, OptionValue]) -> Scored:
        """Score the units of a network.

        Raises
        ------
        SettingsError
            An option makes no sense, or the criterion fails or returns what are no scores.
        """
        try:
            found = self.function(context, **options)
            result = found if isinstance(found, Scored) else Scored(tuple(found))
            self._check(result.scores, context)
        except (SettingsError, MemoryError):
            raise
        except Exception as error:  # another package's code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SettingsError(f"criterion {self.name} failed: {reason}") from error
        return Scored(tuple(result.scores), tuple(result.observers))

    def _check(self, scores: Sequence[Score], context: Context) -> None:
        known = set(units_of(context.network))
        seen: set[tuple[Unit, int]] = set()
        for score in scores:
            what = f"criterion {self.name} returned {score!r}"
            if not isinstance(score, Score) or score.unit not in known:
                raise SettingsError(f"{what}, which is no score of a unit of this network")
            if score.bits not in context.bits or (score.unit, score.bits) in seen:
                raise SettingsError(f"{what}: wanted is one score a unit for each of {context.bits} bits")
            if not math.isfinite(score.value):
                raise SettingsError(f"{what}, whose value is not finite")
            seen.add((score.unit, score.bits))


def criterion(
    *, source: str, needs: Sequence[Need], name: str | None = None, options: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Scored | Sequence[Score]]], Criterion]:
    """Make a criterion of a function of a `Context`; its keyword-only parameters are the criterion's options.

    Parameters
    ----------
    source : where it is published
    needs : what it looks at, among "weights", "grids", "activations", "trials", "labels" and "gradients"
    name : what it is called; None: as the function, with hyphens
    options : help for each option

    Raises
    ------
    TypeError
        A need that there is not, or an option without a default of type bool, int, float or str.
    """
    if unknown := set(needs) - set(NEEDS):
        raise TypeError(f"unknown need {unknown.pop()!r}: there are {', '.join(NEEDS)}")

    def make(function: Callable[..., Scored | Sequence[Score]]) -> Criterion:
        found = {}
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            if not isinstance(parameter.default, bool | int | float | str):
                raise TypeError(f"option {parameter.name} needs a default of type bool, int, float or str")
            found[parameter.name] = Option(parameter.default, (options or {}).get(parameter.name, ""))
        called = name or function.__name__.replace("_", "-")
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        return Criterion(called, summary, source, frozenset(needs), found, function)

    return make
