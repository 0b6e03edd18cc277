"""Solution of the program by HiGHS (through PuLP), with an exact linearisation of the products of bits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

import pulp

from infoq_onnx.allocation.program import Outcome, Program, bits_of, is_feasible, total_of

SCORE_RANGE = 1e6
"""Scores are scaled so that the ranges of all units sum to this. HiGHS treats objectives 1e-6 apart as equal."""

LARGEST_ROW = 1e6
"""Larger limits are scaled down to this. In larger rows, float64 rounding comes near HiGHS's absolute tolerances."""


def solve_highs(program: Program, time_limit: float | None) -> Outcome:
    """Solve the program by branch and bound to a gap of zero, with one thread and a fixed seed.

    Every variable u has one binary x[u, b] per choice. A product b_u · b_v becomes Σ b · b' · p[b, b'] with
    Σ_b' p[b, b'] = x[u, b] and Σ_b p[b, b'] = x[v, b']. The only p ≥ 0 that satisfies this is x[u, b] · x[v, b'].
    Continuous p would suffice in theory. In practice, if a choice exceeds a limit by a tiny amount, HiGHS sometimes
    loses the best solution as well. With binary p this was never seen on programs shaped like networks, and the solver
    is faster (docs/benchmarks/allocate.md).

    HiGHS keeps limits within a tolerance, but the limits must hold exactly. If a solution exceeds a limit within the
    tolerance, a constraint excludes it and all solutions with at least as many bits everywhere, which cost at least as
    much. Then the program is solved again.

    Parameters
    ----------
    program : Program
    time_limit : float or None
        Seconds; None: no limit. After this time, the best solution so far is returned as not optimal, or the narrowest
        choices if there is none.

    Returns
    -------
    Outcome
    """
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    program = _without_hopeless(program)
    model = pulp.LpProblem("allocation", pulp.LpMinimize)
    x = [
        [model.add_variable(f"x_{u}_{i}", cat=pulp.LpBinary) for i in range(len(choices))]
        for u, choices in enumerate(program.choices)
    ]
    spread = math.fsum(float(scores.max() - scores.min()) for scores in program.scores)
    factor = SCORE_RANGE / spread if spread > 0 else 1.0
    model += pulp.LpAffineExpression(
        (x[u][i], factor * float(score - scores.min()))
        for u, scores in enumerate(program.scores)
        for i, score in enumerate(scores)
    )
    for binaries in x:
        model += pulp.lpSum(binaries) == 1
    _add_limits(model, x, program)

    narrowest = (0,) * len(x)
    while True:
        remaining = None if time_limit is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            return Outcome(narrowest, optimal=False)
        solver = pulp.HiGHS(
            msg=False,
            threads=1,
            timeLimit=remaining,
            gapRel=0.0,
            gapAbs=0.0,
            random_seed=0,
        )
        model.solve(solver)
        if model.sol_status == pulp.LpSolutionNoSolutionFound and time_limit is not None:
            return Outcome(narrowest, optimal=False)
        if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            raise RuntimeError(f"HiGHS: {pulp.LpStatus[model.status]}, though the narrowest choices are feasible")
        picks = tuple(max(range(len(binaries)), key=lambda i: binaries[i].varValue) for binaries in x)
        if is_feasible(program, picks):
            return Outcome(picks, optimal=model.sol_status == pulp.LpSolutionOptimal)
        model += pulp.lpSum(b for binaries, pick in zip(x, picks, strict=True) for b in binaries[pick:]) <= len(x) - 1


def _without_hopeless(program: Program) -> Program:
    """Drop the choices that exceed a limit even if all other variables have their narrowest choice.

    Totals grow with every choice, so the first few choices of each variable remain. This makes the program smaller. It
    also prevents coefficients in a tight row that are much larger than the row's remaining budget.
    """
    kept = []
    for variable, choices in enumerate(program.choices):
        picks = [0] * len(program.choices)
        while picks[variable] + 1 < len(choices):
            picks[variable] += 1
            if not is_feasible(program, picks):
                picks[variable] -= 1
                break
        kept.append(picks[variable] + 1)
    return Program(
        tuple(choices[:count] for choices, count in zip(program.choices, kept, strict=True)),
        tuple(scores[:count] for scores, count in zip(program.scores, kept, strict=True)),
        program.limits,
    )


def _add_limits(model: pulp.LpProblem, x: list[list[pulp.LpVariable]], program: Program) -> None:
    """Add a row for every limit that can be exceeded: the cost of the choices above the narrowest choices."""
    narrowest = bits_of(program, [0] * len(x))
    widest = bits_of(program, [-1] * len(x))
    products: dict[tuple[int, ...], list[list[pulp.LpVariable]]] = {}

    def product(u: int, v: int) -> list[list[pulp.LpVariable]]:
        if (u, v) not in products:
            products[u, v] = _add_product(model, x[u], x[v], f"p_{u}_{v}")
        return products[u, v]

    def priced(
        variables: tuple[int, ...], costs: Mapping[tuple[int, ...], int]
    ) -> Iterator[tuple[int, pulp.LpVariable]]:
        """Yield the cost of each choice of one or two variables, and the binary that represents the choice."""
        u, v = min(variables), max(variables)
        for i, b in enumerate(program.choices[u]):
            if u == v:
                yield costs[(b,) * len(variables)], x[u][i]
                continue
            for j, c in enumerate(program.choices[v]):
                yield costs[(b, c) if variables == (u, v) else (c, b)], product(u, v)[i][j]

    for limit in program.limits:
        if total_of(limit, widest) <= limit.upper:
            continue
        row: list[tuple[int, pulp.LpVariable]] = []
        for amount, variables in limit.terms:
            least = math.prod(narrowest[v] for v in variables)
            u, v = min(variables), max(variables)
            if u == v:
                values = [(bits ** len(variables), x[u][i]) for i, bits in enumerate(program.choices[u])]
            else:
                p = product(u, v)
                values = [
                    (b * c, p[i][j]) for i, b in enumerate(program.choices[u]) for j, c in enumerate(program.choices[v])
                ]
            row += [(amount * (value - least), variable) for value, variable in values if amount and value > least]
        for variables, costs in limit.tables:
            least = costs[tuple(narrowest[v] for v in variables)]
            row += [(cost - least, variable) for cost, variable in priced(variables, costs) if cost > least]
        divisor = math.gcd(*(coefficient for coefficient, _ in row))
        # an integer is at most n exactly if it is at most n + 1/2, and rounding cannot bridge this gap
        upper = (limit.upper - total_of(limit, narrowest)) // divisor + 0.5
        scale = min(1.0, LARGEST_ROW / upper)
        model += (
            pulp.lpSum(scale * (coefficient // divisor) * variable for coefficient, variable in row) <= scale * upper
        )


def _add_product(
    model: pulp.LpProblem, x_u: list[pulp.LpVariable], x_v: list[pulp.LpVariable], name: str
) -> list[list[pulp.LpVariable]]:
    """Add p[b, b'] for two different variables. If one has a single choice, p is the binaries of the other."""
    if len(x_u) == 1:
        return [x_v]
    if len(x_v) == 1:
        return [[binary] for binary in x_u]
    p = [[model.add_variable(f"{name}_{i}_{j}", cat=pulp.LpBinary) for j in range(len(x_v))] for i in range(len(x_u))]
    for binary, row in zip(x_u, p, strict=True):
        model += pulp.lpSum(row) == binary
    for binary, column in zip(x_v, zip(*p, strict=True), strict=True):
        model += pulp.lpSum(column) == binary
    return p
