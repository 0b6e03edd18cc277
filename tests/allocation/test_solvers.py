"""HiGHS against trying everything, on programs without any network behind them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.allocation.program import Limit, Program, bits_of, is_feasible, score_of, total_of
from infoq_onnx.allocation.solvers import SOLVERS
from infoq_onnx.errors import SettingsError


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw up to 6 variables with up to 7 choices each and up to 3 limits that their narrowest choices keep."""
    choices = tuple(
        tuple(sorted(draw(st.sets(st.integers(2, 8), min_size=1, max_size=4)))) for _ in range(draw(st.integers(1, 6)))
    )
    score = st.one_of(st.integers(-3, 3).map(float), st.floats(0, 1e-3), st.floats(0, 1e3))
    scores = tuple(np.array(draw(st.lists(score, min_size=len(c), max_size=len(c)))) for c in choices)
    variable = st.integers(0, len(choices) - 1)
    term = st.tuples(
        st.one_of(st.integers(0, 9), st.integers(10**8, 10**10)),
        st.one_of(st.tuples(variable), st.tuples(variable, variable)),
    )
    limits = []
    for name in ("first", "second", "third")[: draw(st.integers(0, 3))]:
        terms = tuple(draw(st.lists(term, min_size=1, max_size=8)))
        # the total of some allocation, or one less: as tight as a limit can be
        tight = total_of(Limit(name, terms, 0), [draw(st.sampled_from(c)) for c in choices])
        least = total_of(Limit(name, terms, 0), [c[0] for c in choices])
        limits.append(Limit(name, terms, max(least, tight - draw(st.integers(0, 1)))))
    return Program(choices, scores, tuple(limits))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(programs())
def test_highs_scores_as_low_as_trying_everything(program: Program) -> None:
    found, best = (SOLVERS[name](program, None) for name in ("highs", "brute"))
    assert is_feasible(program, found.picks)
    assert is_feasible(program, best.picks)
    assert found.optimal
    assert best.optimal
    size = sum(float(np.abs(scores).max()) for scores in program.scores)
    assert abs(score_of(program, found.picks) - score_of(program, best.picks)) <= 1e-11 * size


def test_one_unit_over_a_large_limit_does_not_hide_the_best() -> None:
    """Found by fuzzing: with continuous products HiGHS took the first choices, at five times the least score."""
    limit = Limit("products", ((568_075_417, (1, 1)), (1_955_606, (1, 0))), 5_153_746_478)
    assert total_of(limit, (7, 3)) == limit.upper + 1
    program = Program(((2, 7), (2, 3)), (np.array([50.0, 0.0]), np.array([12.0, 2.0])), (limit,))
    assert SOLVERS["highs"](program, None).picks == (1, 0)


def test_brute_refuses_what_takes_too_long() -> None:
    program = Program(((2, 3, 4, 5, 6, 7, 8),) * 9, (np.zeros(7),) * 9, ())
    with pytest.raises(SettingsError, match="use highs"):
        SOLVERS["brute"](program, None)


def test_a_limit_beyond_the_solvers_tolerance_holds_to_the_last_integer() -> None:
    """Totals of 10¹⁵ with differences of 1: a solver that compares floats within 1e-9 cannot tell them apart.

    Widening the last variable and any other scores 2.0, and is over by one at least.
    """
    terms = tuple((10**15 + i, (i,)) for i in range(4))
    tight = Limit("tight", terms, total_of(Limit("", terms, 0), (3, 2, 3, 2)))
    scores = (np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([1.0, 0.0]), np.array([1.5, 0.0]))
    program = Program(((2, 3),) * 4, scores, (tight,))
    found = SOLVERS["highs"](program, None)
    assert is_feasible(program, found.picks)
    assert score_of(program, found.picks) == score_of(program, SOLVERS["brute"](program, None).picks) == 2.5
    assert sum(bits_of(program, found.picks)) == 10


def test_out_of_time_gives_a_feasible_choice_that_is_not_called_optimal() -> None:
    random = np.random.default_rng(0)
    terms = tuple((int(random.integers(1, 10**6)), (i, i + 1)) for i in range(39))
    limit = Limit("products", terms, total_of(Limit("", terms, 0), [4] * 40))
    program = Program(
        ((2, 3, 4, 5, 6, 7, 8),) * 40, tuple(np.sort(random.random(7))[::-1] for _ in range(40)), (limit,)
    )
    found = SOLVERS["highs"](program, 0.0)
    assert not found.optimal
    assert is_feasible(program, found.picks)
