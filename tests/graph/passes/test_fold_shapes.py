"""Shape arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoq_onnx.graph.editing import initializers_of, to_array
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.graph.passes.fold_shapes import fold_shapes
from tests.graph.compare import apply, assert_same_outputs, operators
from tests.networks import Builder


def target_of(model: onnx.ModelProto, name: str) -> list[int]:
    node = next(node for node in model.graph.node if node.name == name)
    return [int(entry) for entry in to_array(initializers_of(model.graph)[node.input[1]])]


def flatten_by_size(b: Builder, x: str) -> str:
    """x.view(x.size(0), -1) as torch exports it."""
    shape = b.op("Shape", [x], "shape")
    size = b.op("Gather", [shape, b.constant("first", 0, np.int64)], "gather", axis=0)
    size = b.op("Unsqueeze", [size, b.constant("axis", [0], np.int64)], "unsqueeze")
    target = b.op("Concat", [size, b.constant("rest", [-1], np.int64)], "concat", axis=0)
    return b.op("Reshape", [x, target], "flatten")


def test_view_by_batch_size() -> None:
    b = Builder()
    flat = flatten_by_size(b, b.conv("x", "conv", 3, 4, stride=4))
    edited, count = apply(fold_shapes, b.model(b.gemm(flat, "fc", 16, 5), (3, 8, 8), (5,)))
    assert count == 1
    assert target_of(edited, "flatten") == [-1, 16]
    assert operators(normalize(edited)) == ["Conv", "Reshape", "Gemm"]


def test_view_with_fixed_batch_becomes_all_constant() -> None:
    b = Builder()
    flat = flatten_by_size(b, b.conv("x", "conv", 3, 4, stride=4))
    model = b.model(b.gemm(flat, "fc", 16, 5), (3, 8, 8), (5,), batch=2)
    edited, _ = apply(fold_shapes, model)
    assert "Shape" not in operators(edited)
    assert target_of(edited, "flatten") in ([2, -1], [2, 16])


def test_spatial_sizes_are_known() -> None:
    """Gather, Slice, Mul, Div and Concat of Shape entries: the head split of an attention block."""
    b = Builder()
    shape = b.op("Shape", ["x"], "shape")
    batch = b.op("Slice", [shape, b.constant("a", [0], np.int64), b.constant("b", [1], np.int64)], "batch")
    tokens = b.op("Slice", [shape, b.constant("c", [1], np.int64), b.constant("d", [2], np.int64)], "tokens")
    width = b.op("Gather", [shape, b.constant("e", 2, np.int64)], "width")
    head = b.op("Div", [width, b.constant("heads", 4, np.int64)], "head")
    head = b.op("Unsqueeze", [head, b.constant("axis", [0], np.int64)], "head1")
    target = b.op("Concat", [batch, tokens, b.constant("four", [4], np.int64), head], "target", axis=0)
    split = b.op("Reshape", ["x", target], "split")
    y = b.op("ReduceMean", [split], "mean", axes=[1, 2], keepdims=0)
    edited, count = apply(fold_shapes, b.model(y, (6, 8), (2,)))
    assert count == 5  # tokens, width, head, head1, and the Reshape
    assert target_of(edited, "split") == [-1, 6, 4, 2]
    assert operators(normalize(edited)) == ["Reshape", "ReduceMean"]


@pytest.mark.parametrize(("start", "end"), [(1, None), (-2, None), (1, 3), (1, -1)])
def test_shape_with_bounds(start: int, end: int | None) -> None:
    b = Builder()
    bounds = {"start": start} if end is None else {"start": start, "end": end}
    b.nodes.append(onnx.helper.make_node("Shape", ["x"], ["sizes"], name="sizes", **bounds))
    total = b.op("ReduceProd", [b.op("Cast", ["sizes"], "cast", to=onnx.TensorProto.FLOAT)], "total", keepdims=0)
    edited, count = apply(fold_shapes, b.model(b.op("Mul", ["x", total], "mul"), (2, 3), (2, 3)))
    assert count == 1
    np.testing.assert_array_equal(to_array(initializers_of(edited.graph)["sizes"]), [9, 2, 3][start:end])


def test_int32_arithmetic_keeps_its_type() -> None:
    b = Builder()
    cast = b.op("Cast", [b.op("Shape", ["x"], "shape", start=1)], "cast32", to=onnx.TensorProto.INT32)
    size = b.op("Gather", [cast, b.constant("first", 0, np.int64)], "gather", axis=0)
    size = b.op("Cast", [size], "float", to=onnx.TensorProto.FLOAT)
    edited, count = apply(fold_shapes, b.model(b.op("Div", ["x", size], "div"), (5,), (5,)))
    assert count == 3
    assert to_array(initializers_of(edited.graph)["gather_out"]).dtype == np.int32


def test_reshape_that_moves_the_batch_elsewhere() -> None:
    """[N, 4, 6] -> [4, N, 6]: one free axis, though not the first."""
    b = Builder()
    shape = b.op("Shape", ["x"], "shape", end=1)
    target = b.op("Concat", [b.constant("four", [4], np.int64), shape, b.constant("six", [6], np.int64)], "t", axis=0)
    moved = b.op("Reshape", ["x", target], "move")
    y = b.op("Reshape", [moved, b.constant("back", [-1, 4, 6], np.int64)], "back_again")
    edited, _ = apply(fold_shapes, b.model(y, (4, 6), (4, 6)), batch=3)
    assert target_of(edited, "move") == [4, -1, 6]


def test_two_free_axes_are_left_alone() -> None:
    """[N, 4] -> [N, N', ...] cannot be told from the element count."""
    b = Builder()
    size = b.op("Shape", ["x"], "shape", end=1)
    pair = b.op("Concat", [size, b.constant("one", [1], np.int64), size], "pair", axis=0)
    grown = b.op("Expand", [b.op("Unsqueeze", ["x", b.constant("axis", [2], np.int64)], "u"), pair], "expand")
    target = b.op("Concat", [size, b.constant("four", [4], np.int64), size], "target", axis=0)
    y = b.op("ReduceMean", [b.op("Reshape", [grown, target], "reshape")], "mean", axes=[2], keepdims=0)
    _, count = apply(fold_shapes, b.model(y, (4,), (4,)))
    assert count == 0


Step = Callable[[Builder, str, str], str]


def _take(entries: list[int]) -> Step:
    return lambda b, y, n: b.op("Gather", [y, b.constant(f"{n}_i", entries, np.int64)], n, axis=0)


def _cut(start: int, stop: int, step: int) -> Step:
    def write(b: Builder, y: str, n: str) -> str:
        bounds = [b.constant(f"{n}_{k}", [v], np.int64) for k, v in (("s", start), ("e", stop), ("a", 0), ("t", step))]
        return b.op("Slice", [y, *bounds], n)

    return write


def _calculate(op_type: str, value: int) -> Step:
    return lambda b, y, n: b.op(op_type, [y, b.constant(f"{n}_v", [value], np.int64)], n)


def _join(b: Builder, y: str, n: str) -> str:
    return b.op("Concat", [y, b.constant(f"{n}_v", [7, -3], np.int64), y], n, axis=0)


STEPS = st.one_of(
    st.lists(st.integers(-2, 1), min_size=2, max_size=4).map(_take),
    st.builds(_cut, st.integers(-3, 0), st.sampled_from([2, 3, 2**63 - 1]), st.sampled_from([1])),
    st.builds(_cut, st.just(-1), st.just(-(2**63) + 1), st.just(-1)),
    st.builds(_calculate, st.sampled_from(["Add", "Sub", "Mul", "Div"]), st.sampled_from([-3, -1, 2, 5])),
    st.just(_join),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=1, max_size=5))
def test_random_arithmetic_is_evaluated_as_onnxruntime_does(steps: list[Step]) -> None:
    b = Builder()
    y = b.op("Shape", ["x"], "shape")
    for index, step in enumerate(steps):
        y = step(b, y, f"step{index}")
    total = b.op("Cast", [b.op("ReduceSum", [y], "total", keepdims=0)], "cast", to=onnx.TensorProto.FLOAT)
    model = b.model(b.op("Mul", ["x", total], "mul"), (3, 5), (3, 5))
    edited, _ = apply(fold_shapes, model, batch=2)
    assert_same_outputs(model, edited, batch=3)
