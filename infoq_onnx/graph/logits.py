"""Which output of a model holds the class scores."""

from __future__ import annotations

import numpy as np
import onnx

from infoq_onnx.errors import ModelError, setting
from infoq_onnx.graph.editing import add_metadata, producers_of
from infoq_onnx.graph.graph import LOGITS_KEY, Graph

_CHOOSES = frozenset({"ArgMax", "TopK", "Hardmax"})


def with_logits(graph: Graph, wanted: str | None = None) -> Graph:
    """Return a graph whose `output` holds the class scores: float32 [batch, classes].

    That is the first output, or the only other one that is of this kind. The choice is stored in the model's metadata,
    so that the order of its outputs stays.

    Parameters
    ----------
    graph : Graph
        A normalised model.
    wanted : str or None
        The output to take; None: as above.

    Raises
    ------
    ModelError
        No output holds class scores, several may, or there is no output of that name.
    """
    if wanted is not None and wanted not in graph.outputs:
        raise ModelError(
            f"there is no output {wanted!r}; its outputs are {', '.join(graph.outputs)}: give one of them with "
            f"{setting('logits')}"
        )
    if wanted is None:
        possible = [name for name in graph.outputs if classes_of(graph, name)]
        if len(possible) > 1 and graph.outputs[0] not in possible:
            raise ModelError(
                f"the first output {_described(graph, graph.outputs[0])}, and several others may hold the class "
                f"scores ({', '.join(possible)}): choose one with {setting('logits')}"
            )
        wanted = graph.outputs[0] if graph.outputs[0] in possible or not possible else possible[0]
    if not classes_of(graph, wanted):
        raise ModelError(refusal(graph, wanted))
    if wanted == graph.output:
        return graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    add_metadata(model, {LOGITS_KEY: wanted})
    return Graph(model)


def classes_of(graph: Graph, output: str) -> int:
    """Return the number of classes that an output holds scores of; 0 where it holds something else."""
    shape = graph.shapes.get(output)
    if shape is None or output not in graph.batched or graph.dtypes[output] != np.float32:
        return 0
    sizes = [size for size in shape if size != 1]
    return sizes[0] if len(sizes) == 1 else 0


def _described(graph: Graph, output: str) -> str:
    if output not in graph.shapes:
        return f"{output!r} is not a tensor"
    rank = ["batch"] if output in graph.batched else []
    sizes = ", ".join([*rank, *map(str, graph.shapes[output])])
    return f"{output!r} is {graph.dtypes[output]} [{sizes}]"


def refusal(graph: Graph, output: str) -> str:
    """Say what an output is instead of class scores, and how to export it."""
    told = f"output {_described(graph, output)}"
    if output not in graph.shapes:
        return (
            f"{told}: infoq-onnx needs float32 [batch, classes]; export the model without ZipMap (in skl2onnx: "
            "zipmap=False)"
        )
    producer = producers_of(graph.model.graph).get(output)
    if np.issubdtype(graph.dtypes[output], np.integer) or (producer is not None and producer.op_type in _CHOOSES):
        return (
            f"{told}, a chosen class and not its scores: export the model so that it returns float32 [batch, classes], "
            "without ArgMax behind the scores"
        )
    elements = int(np.prod(graph.shapes[output], dtype=np.int64))
    if output in graph.batched and elements == 1:
        joined = "cat" if graph.shapes[output] else "stack"
        return (
            f"{told}, one score an image, as binary classifiers have it: export the model with a score for each of "
            f"the two classes (in PyTorch: return torch.{joined}([torch.zeros_like(z), z], dim=1) for a logit z)"
        )
    return (
        f"{told}, not float32 [batch, classes]: infoq-onnx quantizes classifiers that give one score a class; export "
        "the model so that it returns such scores"
    )
