"""Small networks with seeded random weights, for the tests of every stage.

Each function returns a checked ModelProto with input ``x`` and output ``logits``. Weights are scaled by the fan-in, so
that activations keep a size of about one and logits differ between classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

OPSET = 17


class Builder:
    """Collects nodes and weights; each method adds one node and returns the name of its output."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.weights[name] = np.asarray(values, dtype=dtype)
        return name

    def normal(self, name: str, *shape: int, fan_in: int = 1) -> str:
        return self.constant(name, self.random.standard_normal(shape) * math.sqrt(2 / fan_in))

    def op(
        self, op_type: str, inputs: list[str], name: str, outputs: list[str] | None = None, **attributes: Any
    ) -> str:
        written = outputs or [f"{name}_out"]
        self.nodes.append(helper.make_node(op_type, inputs, written, name=name, **attributes))
        return written[0]

    def conv(
        self,
        x: str,
        name: str,
        cin: int,
        cout: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        bias: bool = True,
    ) -> str:
        per_group = cin // group
        inputs = [x, self.normal(f"{name}_w", cout, per_group, kernel, kernel, fan_in=per_group * kernel**2)]
        if bias:
            inputs.append(self.constant(f"{name}_b", self.random.standard_normal(cout) * 0.1))
        pads = [kernel // 2] * 4
        return self.op("Conv", inputs, name, strides=[stride, stride], pads=pads, group=group)

    def gemm(self, x: str, name: str, cin: int, cout: int) -> str:
        weight = self.normal(f"{name}_w", cout, cin, fan_in=cin)
        bias = self.constant(f"{name}_b", self.random.standard_normal(cout) * 0.1)
        return self.op("Gemm", [x, weight, bias], name, transB=1)

    def linear(self, x: str, name: str, cin: int, cout: int) -> str:
        """Add a MatMul and the Add of its bias, as exporters write a linear layer on tokens."""
        product = self.op("MatMul", [x, self.normal(f"{name}_w", cin, cout, fan_in=2 * cin)], name)
        bias = self.constant(f"{name}_b", self.random.standard_normal(cout) * 0.1)
        return self.op("Add", [product, bias], f"{name}_add")

    def batchnorm(self, x: str, name: str, channels: int) -> str:
        inputs = [
            x,
            self.constant(f"{name}_gamma", self.random.uniform(0.5, 1.5, channels)),
            self.constant(f"{name}_beta", self.random.standard_normal(channels) * 0.1),
            self.constant(f"{name}_mean", self.random.standard_normal(channels) * 0.1),
            self.constant(f"{name}_var", self.random.uniform(0.5, 1.5, channels)),
        ]
        return self.op("BatchNormalization", inputs, name, epsilon=1e-5)

    def relu(self, x: str, name: str) -> str:
        return self.op("Relu", [x], name)

    def relu6(self, x: str, name: str) -> str:
        return self.op("Clip", [x, self.constant("zero", 0.0), self.constant("six", 6.0)], name)

    def classifier(self, x: str, cin: int, classes: int) -> str:
        pooled = self.op("GlobalAveragePool", [x], "gap")
        return self.gemm(self.op("Flatten", [pooled], "flatten", axis=1), "fc", cin, classes)

    def model(
        self,
        output: str,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        batch: int | None = None,
        opset: int = OPSET,
        domains: tuple[str, ...] = (),
        functions: tuple[FunctionProto, ...] = (),
    ) -> ModelProto:
        """Finish: rename `output` to "logits", and make and check the model."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = "logits"
        axis: Any = "batch" if batch is None else batch
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [axis, *input_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [axis, *output_shape])],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=imports, functions=functions)
        model.ir_version = max(8, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
        onnx.checker.check_model(model, full_check=True)
        return model


def residual_convnet(
    seed: int = 0, size: int = 16, width: int = 8, classes: int = 10, batch: int | None = None
) -> ModelProto:
    """Stem, an identity block, a downsampling block with a 1×1 shortcut, global pooling, Gemm: 7 layers."""
    b = Builder(seed)
    stem = b.relu(b.conv("x", "stem", 3, width), "stem_relu")
    first = b.relu(b.conv(stem, "a1", width, width), "a1_relu")
    second = b.conv(first, "a2", width, width)
    block = b.relu(b.op("Add", [second, stem], "a_add"), "a_relu")
    first = b.relu(b.conv(block, "b1", width, 2 * width, stride=2), "b1_relu")
    second = b.conv(first, "b2", 2 * width, 2 * width)
    shortcut = b.conv(block, "b_short", width, 2 * width, kernel=1, stride=2)
    block = b.relu(b.op("Add", [second, shortcut], "b_add"), "b_relu")
    return b.model(b.classifier(block, 2 * width, classes), (3, size, size), (classes,), batch)


def depthwise_net(seed: int = 0, size: int = 16, classes: int = 10) -> ModelProto:
    """Inverted residuals with Clip(0, 6) and a 1×1 convolution as classifier: 6 layers, two of them depthwise."""
    b = Builder(seed)
    stem = b.relu6(b.conv("x", "stem", 3, 8, stride=2), "stem_relu6")
    depthwise = b.relu6(b.conv(stem, "dw1", 8, 8, group=8), "dw1_relu6")
    narrow = b.conv(depthwise, "project1", 8, 8, kernel=1)
    added = b.op("Add", [narrow, stem], "add")
    depthwise = b.relu6(b.conv(added, "dw2", 8, 8, stride=2, group=8), "dw2_relu6")
    wide = b.relu6(b.conv(depthwise, "expand", 8, 32, kernel=1), "expand_relu6")
    pooled = b.op("GlobalAveragePool", [wide], "gap")
    scores = b.conv(pooled, "head", 32, classes, kernel=1)
    return b.model(b.op("Flatten", [scores], "flatten", axis=1), (3, size, size), (classes,))


def concat_net(seed: int = 0, size: int = 16, classes: int = 10) -> ModelProto:
    """A fire module: squeeze, two expanding branches, Concat, MaxPool; then a classifier convolution before pooling."""
    b = Builder(seed)
    stem = b.relu(b.conv("x", "stem", 3, 8), "stem_relu")
    pooled = b.op("MaxPool", [stem], "pool", kernel_shape=[2, 2], strides=[2, 2])
    squeezed = b.relu(b.conv(pooled, "squeeze", 8, 4, kernel=1), "squeeze_relu")
    left = b.relu(b.conv(squeezed, "expand1", 4, 8, kernel=1), "expand1_relu")
    right = b.relu(b.conv(squeezed, "expand3", 4, 8), "expand3_relu")
    joined = b.op("Concat", [left, right], "concat", axis=1)
    scores = b.conv(joined, "score", 16, classes, kernel=1)
    mean = b.op("GlobalAveragePool", [scores], "gap")
    return b.model(b.op("Flatten", [mean], "flatten", axis=1), (3, size, size), (classes,))


def attention_net(seed: int = 0, size: int = 8, classes: int = 10, heads: int = 2, dim: int = 16) -> ModelProto:
    """Patches, a transformer block with LayerNormalization, mean over tokens: 8 layers with weights, 2 without."""
    b = Builder(seed)
    tokens, head = (size // 2) ** 2, dim // heads
    weight = b.normal("patch_w", dim, 3, 2, 2, fan_in=24)
    patches = b.op("Conv", ["x", weight], "patch", strides=[2, 2])
    rows = b.op("Reshape", [patches, b.constant("rows", [0, dim, tokens], np.int64)], "to_rows")
    stream = b.op("Transpose", [rows], "to_tokens", perm=[0, 2, 1])
    normed = _layernorm(b, stream, "norm1", dim)
    split = b.constant("split", [0, tokens, heads, head], np.int64)
    parts = {}
    for part, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        projected = b.op("Reshape", [b.linear(normed, part, dim, dim), split], f"{part}_heads")
        parts[part] = b.op("Transpose", [projected], f"{part}_order", perm=order)
    scores = b.op("MatMul", [parts["q"], parts["k"]], "scores")
    scaled = b.op("Mul", [scores, b.constant("root", 1 / math.sqrt(head))], "scale")
    mixed = b.op("MatMul", [b.op("Softmax", [scaled], "softmax", axis=-1), parts["v"]], "mix")
    merged = b.op("Transpose", [mixed], "merge_order", perm=[0, 2, 1, 3])
    merged = b.op("Reshape", [merged, b.constant("merge", [0, tokens, dim], np.int64)], "merge_heads")
    stream = b.op("Add", [stream, b.linear(merged, "proj", dim, dim)], "add1")
    hidden = b.op("Tanh", [b.linear(_layernorm(b, stream, "norm2", dim), "mlp1", dim, 2 * dim)], "mlp_act")
    stream = b.op("Add", [stream, b.linear(hidden, "mlp2", 2 * dim, dim)], "add2")
    mean = b.op("ReduceMean", [stream], "mean", axes=[1], keepdims=0)
    return b.model(b.gemm(mean, "fc", dim, classes), (3, size, size), (classes,))


def _layernorm(b: Builder, x: str, name: str, dim: int) -> str:
    scale = b.constant(f"{name}_scale", b.random.uniform(0.5, 1.5, dim))
    shift = b.constant(f"{name}_shift", b.random.standard_normal(dim) * 0.1)
    return b.op("LayerNormalization", [x, scale, shift], name, axis=-1)


def mlp(seed: int = 0, features: int = 12, hidden: int = 16, classes: int = 4, batch: int | None = None) -> ModelProto:
    """Three Gemm layers on feature vectors."""
    b = Builder(seed)
    first = b.relu(b.gemm("x", "fc1", features, hidden), "relu1")
    second = b.relu(b.gemm(first, "fc2", hidden, hidden), "relu2")
    return b.model(b.gemm(second, "fc3", hidden, classes), (features,), (classes,), batch)


def batchnorm_net(seed: int = 0, size: int = 8, classes: int = 10) -> ModelProto:
    """BatchNormalization behind Conv, grouped Conv, depthwise Conv, grouped ConvTranspose and Gemm, all foldable: 5."""
    b = Builder(seed)
    y = b.relu(b.batchnorm(b.conv("x", "conv", 3, 8, bias=False), "bn1", 8), "relu1")
    y = b.relu(b.batchnorm(b.conv(y, "grouped", 8, 12, group=4), "bn2", 12), "relu2")
    y = b.relu(b.batchnorm(b.conv(y, "depthwise", 12, 12, group=12, bias=False), "bn3", 12), "relu3")
    weight = b.normal("up_w", 12, 3, 2, 2, fan_in=24)
    up = b.op("ConvTranspose", [y, weight, b.normal("up_b", 6)], "up", group=2, strides=[2, 2], kernel_shape=[2, 2])
    y = b.relu(b.batchnorm(up, "bn4", 6), "relu4")
    flat = b.op("Flatten", [b.op("GlobalAveragePool", [y], "gap")], "flatten", axis=1)
    return b.model(b.batchnorm(b.gemm(flat, "fc", 6, classes), "bn5", classes), (3, size, size), (classes,))


def fixed_batch_net(seed: int = 0) -> ModelProto:
    """`residual_convnet` with the batch fixed to 1, as many exporters write it."""
    return residual_convnet(seed, batch=1)


def auxiliary_net(seed: int = 0, size: int = 8, classes: int = 10) -> ModelProto:
    """Two convolutions and a classifier; between them branches off a head of its own, the second output: 3 layers."""
    b = Builder(seed)
    stem = b.relu(b.conv("x", "stem", 3, 8), "stem_relu")
    last = b.relu(b.conv(stem, "last", 8, 8), "last_relu")
    scores = b.classifier(last, 8, classes)
    beside = b.relu(b.conv(stem, "aux_conv", 8, 4), "aux_relu")
    flat = b.op("Flatten", [b.op("GlobalAveragePool", [beside], "aux_gap")], "aux_flatten", axis=1)
    auxiliary = b.gemm(flat, "aux_fc", 4, classes)
    model = b.model(scores, (3, size, size), (classes,))
    model.graph.output.append(helper.make_tensor_value_info(auxiliary, TensorProto.FLOAT, ["batch", classes]))
    return model


def resnet18(seed: int = 0, classes: int = 1000) -> ModelProto:
    """ResNet18 (He et al. 2016) at 224×224, batch norms folded: 1,814,073,344 MACs, 11,678,912 weights."""
    b = Builder(seed)
    y = b.relu(b.conv("x", "conv1", 3, 64, kernel=7, stride=2), "relu1")
    y = b.op("MaxPool", [y], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, cout in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            y = _basic_block(b, y, f"layer{stage}.{block}", cin, cout, stride=2 if stage > 1 and block == 0 else 1)
            cin = cout
    return b.model(b.classifier(y, 512, classes), (3, 224, 224), (classes,))


def _basic_block(b: Builder, x: str, name: str, cin: int, cout: int, stride: int) -> str:
    y = b.relu(b.conv(x, f"{name}.conv1", cin, cout, stride=stride), f"{name}.relu1")
    y = b.conv(y, f"{name}.conv2", cout, cout)
    shortcut = b.conv(x, f"{name}.downsample", cin, cout, kernel=1, stride=stride) if stride > 1 else x
    return b.relu(b.op("Add", [y, shortcut], f"{name}.add"), f"{name}.relu2")


def resnet50(seed: int = 0, classes: int = 1000) -> ModelProto:
    """ResNet50 at 224×224, strides in its 3×3 convolutions: 4,089,184,256 MACs, 25,502,912 weights."""
    b = Builder(seed)
    y = b.relu(b.conv("x", "conv1", 3, 64, kernel=7, stride=2), "relu1")
    y = b.op("MaxPool", [y], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            y = _bottleneck(b, y, f"layer{stage}.{block}", cin, width, stride=2 if stage > 1 and block == 0 else 1)
            cin = 4 * width
    return b.model(b.classifier(y, 2048, classes), (3, 224, 224), (classes,))


def _bottleneck(b: Builder, x: str, name: str, cin: int, width: int, stride: int) -> str:
    cout = 4 * width
    y = b.relu(b.conv(x, f"{name}.conv1", cin, width, kernel=1), f"{name}.relu1")
    y = b.relu(b.conv(y, f"{name}.conv2", width, width, stride=stride), f"{name}.relu2")
    y = b.conv(y, f"{name}.conv3", width, cout, kernel=1)
    shortcut = b.conv(x, f"{name}.downsample", cin, cout, kernel=1, stride=stride) if cin != cout else x
    return b.relu(b.op("Add", [y, shortcut], f"{name}.add"), f"{name}.relu3")


SMALL = {
    "residual": residual_convnet,
    "depthwise": depthwise_net,
    "concat": concat_net,
    "attention": attention_net,
    "mlp": mlp,
    "batchnorm": batchnorm_net,
    "fixed batch": fixed_batch_net,
}
"""Every small network by name, for parametrized tests."""
