"""Load, check and normalize an ONNX model, find its quantizable layers, and extract subgraphs."""

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.extract import cut, extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.network import find_network
from infoq_onnx.graph.normalize import normalize

__all__ = ["Graph", "cut", "expose", "extract", "find_network", "load_model", "normalize"]
