"""How long the integer program takes, and whether HiGHS finds what trying everything finds.

python benchmarks/allocate.py [--programs 2000]
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np

from infoq_onnx.allocation.bounds import parse_budget
from infoq_onnx.allocation.program import Limit, Program, Rules, Scores, is_feasible, score_of, total_of
from infoq_onnx.allocation.solve import solve
from infoq_onnx.allocation.solvers import SOLVERS
from infoq_onnx.schema import ActivationGroup, Layer, Network

BUDGETS = (
    {"compression": "10.66x"},
    {"bitops": "uniform:3/3"},
    {"bitops": "uniform:4/4", "compression": "10.66x"},
    {"bitops": "uniform:3/3", "size": "uniform:3", "avg_act_bits": "3.5"},
)


def make_network(layers: list[tuple[str, tuple[str, ...], int, int]], elements: dict[str, int]) -> Network:
    """Make a network of (name, groups, parameters, MACs)."""
    made = tuple(
        Layer(n, "Conv" if p else "MatMul", g, n if p else None, (p,), 0, None, n, n, (1,), p, m)
        for n, g, p, m in layers
    )
    groups = tuple(
        ActivationGroup(name, tuple(layer.name for layer in made if name in layer.groups), (count,), count)
        for name, count in elements.items()
    )
    return Network("image", (3, 224, 224), "logits", 1000, None, 20, made, groups, ())


def make_cnn(count: int) -> Network:
    """Draw convolutions of all sizes, every seventh or so sharing the input of the one before."""
    rng = np.random.default_rng(count)
    layers, elements = [], {}
    for i in range(count):
        size, kernel = 2 ** int(rng.integers(3, 7)), int(rng.choice([1, 3]))
        c_in, c_out = (8 * int(c) for c in rng.integers(2, 64, 2))
        group = f"t{i - 1}" if f"t{i - 1}" in elements and rng.random() < 0.15 else f"t{i}"
        elements.setdefault(group, c_in * size**2)
        parameters = c_in * c_out * kernel**2
        layers.append((f"conv{i}", (group,), parameters, parameters * size**2))
    return make_network(layers, elements)


def make_vit(blocks: int = 12, width: int = 192, tokens: int = 197) -> Network:
    """A vision transformer: six layers a block, two of them MatMuls of activations."""
    layers = [("patch", ("image",), 768 * width, 768 * width * 196)]
    elements = {"image": 150_528}
    for b in range(blocks):
        for name, group, c_in, c_out in [
            ("qkv", "x", width, 3 * width),
            ("proj", "o", width, width),
            ("fc1", "y", width, 4 * width),
            ("fc2", "h", 4 * width, width),
        ]:
            elements[f"{b}.{group}"] = tokens * c_in
            layers.append((f"{b}.{name}", (f"{b}.{group}",), c_in * c_out, c_in * c_out * tokens))
        for left, right in (("q", "k"), ("s", "v")):
            elements |= {f"{b}.{left}": tokens * (3 * tokens if left == "s" else width), f"{b}.{right}": tokens * width}
            layers.append((f"{b}.{left}{right}", (f"{b}.{left}", f"{b}.{right}"), 0, tokens**2 * width))
    elements["class"] = width
    layers.append(("head", ("class",), 1000 * width, 1000 * width))
    return make_network(layers, elements)


def make_scores(names: list[str], seed: int) -> dict[str, dict[int, float]]:
    """Draw scores that fall about fourfold a bit, with noise and a noise floor."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-4, -1.5, len(names))
    return {
        name: {
            bits: float(c * 4.0 ** (2 - bits) * np.exp(0.3 * rng.normal()) + 1e-5 * abs(rng.normal()))
            for bits in range(2, 8)
        }
        for name, c in zip(names, size, strict=True)
    }


def make_program(rng: random.Random) -> Program:
    """Draw a small program with limits that some choice meets exactly, or misses by one."""
    count = rng.randint(2, 6)
    choices = tuple(tuple(sorted(rng.sample(range(2, 9), rng.randint(1, 4)))) for _ in range(count))
    scores = tuple(np.array([10 ** rng.uniform(-6, 3) for _ in c]) for c in choices)
    limits = []
    for _ in range(rng.randint(1, 3)):
        terms = tuple(
            (int(10 ** rng.uniform(0, 11)), tuple(rng.randrange(count) for _ in range(rng.randint(1, 2))))
            for _ in range(rng.randint(1, 8))
        )
        limit = Limit("", terms, 0)
        tight = total_of(limit, [rng.choice(c) for c in choices]) - rng.randint(0, 1)
        limits.append(Limit("", terms, max(tight, total_of(limit, [c[0] for c in choices]))))
    return Program(choices, scores, tuple(limits))


def print_times() -> None:
    """Print a row for every network and budget."""
    print("| network | layers | groups | budget | seconds | optimal |\n|---|---|---|---|---|---|")
    networks = {"CNN 20": make_cnn(20), "CNN 53": make_cnn(53), "CNN 75": make_cnn(75), "ViT 12": make_vit()}
    for name, network in networks.items():
        weights = make_scores([layer.name for layer in network.layers if layer.weight], seed=1)
        activations = make_scores([group.name for group in network.groups], seed=2)
        for budget in BUDGETS:
            bounds = [parse_budget(metric, text, network) for metric, text in budget.items()]
            start = time.perf_counter()
            rules = Rules(weight_only=set(budget) == {"compression"})
            found = solve(network, Scores(weights, activations), bounds, rules)
            seconds = time.perf_counter() - start
            written = ", ".join(f"{metric} {text}" for metric, text in budget.items())
            sizes = f"{len(network.layers)} | {len(network.groups)}"
            print(f"| {name} | {sizes} | {written} | {seconds:.2f} | {'yes' if found.optimal else 'no'} |")


def print_misses(count: int) -> None:
    """Print how many of `count` random programs HiGHS does not solve as well as trying everything."""
    rng = random.Random(0)
    over = worse = 0
    for _ in range(count):
        program = make_program(rng)
        found, best = (SOLVERS[name](program, None) for name in ("highs", "brute"))
        spread = sum(float(np.ptp(scores)) for scores in program.scores)
        over += not is_feasible(program, found.picks)
        worse += score_of(program, found.picks) - score_of(program, best.picks) > 1e-11 * spread
    print(f"\nrandom programs: {count}; with a broken limit: {over}; with a score above the optimum: {worse}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=2000)
    arguments = parser.parse_args()
    print_times()
    print_misses(arguments.programs)
