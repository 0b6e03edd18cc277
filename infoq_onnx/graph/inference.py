"""Reject models whose output is not a function of the input: operators in training mode and random operators.

Nodes that no output depends on are ignored. Causes that the operators alone do not reveal, such as a reduction over the
batch axis, are found by running the model: see `simulate.running.repeatability`.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import attribute, input_at, is_standard, opset_of, reads, to_array, walk

_RANDOM = frozenset(
    ["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"]
)
_DROPOUTS = frozenset(["Dropout", "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"])
"""Dropout and its onnxruntime fusions. The last input of each enables training mode."""
_TRAINING_INPUT = {"Dropout": 2, "BitmaskDropout": 2, "BiasDropout": 4, "BitmaskBiasDropout": 4}
_EXPORT = "export it for inference (in PyTorch: model.eval(), and torch.onnx.export with its default `training`)"


def require_inference(model: ModelProto) -> None:
    """Raise an error if a model contains operators in training mode or random operators.

    Parameters
    ----------
    model : a model as read from a file, or in normal form; only the normal form reveals a Dropout whose training input
        is a computed constant

    Raises
    ------
    ModelError
        The model contains such a node. The message names the node and tells how to export the model.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _live(model):
        for tensor in node.attribute:
            if node.op_type == "Constant" and tensor.name == "value" and node.output:
                constants[node.output[0]] = tensor.t
        if found := _objection(node, constants, opset_of(model)):
            raise ModelError(f"{node.op_type} {node.name or node.output[0]!r} {found}")


def _live(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes that the outputs depend on, including nodes in subgraphs and called functions."""
    functions = {(function.domain, function.name): function for function in model.functions}
    wanted = {value.name for value in model.graph.output}
    called: set[tuple[str, str]] = set()

    def inside(nodes: list[NodeProto]) -> Iterator[NodeProto]:
        for node in walk(nodes):
            yield node
            key = (node.domain, node.op_type)
            if key in functions and key not in called:
                called.add(key)
                yield from inside(list(functions[key].node))

    live = []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(reads(node))
            live.append(node)
    yield from inside(live[::-1])


def _objection(node: NodeProto, constants: dict[str, TensorProto], opset: int) -> str:
    """Return why a node is not allowed at inference; "" if it is allowed."""
    if is_standard(node.domain) and node.op_type in _RANDOM:
        return (
            "draws random numbers, so that the same image gives other scores each time; export the model without it "
            "(in PyTorch, model.eval() turns noise off)"
        )
    if is_standard(node.domain) and node.op_type == "BatchNormalization":
        # up to opset 13, a second output enables training mode; since opset 14, an attribute does
        training = attribute(node, "training_mode", 0) if opset >= 14 else any(node.output[1:])
        if training:
            return f"is in training mode: it normalises by the statistics of each batch; {_EXPORT}"
    if node.domain in ("", "ai.onnx", "com.microsoft") and node.op_type in _DROPOUTS:
        training_input = input_at(node, _TRAINING_INPUT[node.op_type])
        value = constants.get(training_input)
        if value is not None and to_array(value).any():
            return f"is in training mode: it drops values at random; {_EXPORT}"
    return ""
