"""The two files of an allocation: made, measured, checked and written."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.qonnx import qonnx_model, verify_qonnx
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import TARGETS
from infoq_onnx.emit.verify import verify
from infoq_onnx.evaluation import PREPROCESSING_KEY
from infoq_onnx.files import replacing, write_text
from infoq_onnx.graph.compact import shorten_names
from infoq_onnx.quantize.levels import SHIFTED_BITS
from infoq_onnx.schema import Allocation, Preprocessing, Verification, to_json
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

CHECKED_IMAGES = {"qdq": 128, "qonnx": 8}
"""Images that a file of each format is checked with; qonnx executes node by node, in seconds an image."""


@dataclass(frozen=True)
class Emission:
    """Everything that a model's file depends on but the codes of its weights, and the allocation."""

    of: Quantizable
    storage: str
    """How weight codes lie in the file, a key of `emit.storage.STORAGES`."""
    label: str
    """The budget in one word, for the model's metadata."""
    preprocessing: Preprocessing | None
    format: str = "qdq"
    """"qdq" for onnxruntime, "qonnx" for FINN and Brevitas."""

    def model(self, allocation: Allocation, codes: Mapping[str, LayerCodes]) -> onnx.ModelProto:
        """Build the model of an allocation."""
        metadata = {
            "infoq_onnx.version": importlib.metadata.version("infoq-onnx"),
            "infoq_onnx.budget": self.label,
            "infoq_onnx.allocation": to_json(allocation, compact=True),
            PREPROCESSING_KEY: to_json(self.preprocessing or preprocess.AS_IS, compact=True),
        }
        if self.format == "qonnx":
            simulated = self.simulation(allocation, codes)
            return qonnx_model(simulated, self.of.network, codes, metadata)
        model = qdq_model(self.of, allocation.bits, codes, STORAGES[self.storage], metadata)
        # layers and groups go by the names that the allocation has for them
        shorten_names(model, {name for layer in self.of.network.layers for name in (layer.output, *layer.groups)})
        return model

    def simulation(self, allocation: Allocation, codes: Mapping[str, LayerCodes]) -> onnx.ModelProto:
        """Build what the file has to compute."""
        return simulation(self.of, allocation.bits, codes=codes)

    def overhead(self, allocation: Allocation) -> float:
        """Bytes of an allocation's file that are not weights, at most. Of the codes only the origins take room."""
        codes = layer_codes(self.of, allocation.bits)
        if get_rounding(allocation.rounding).reads_images:
            for name, held in codes.items():
                if (width := allocation.weight_bits[name]) <= SHIFTED_BITS:
                    # levels beyond the usual ones, as channels have where rounding places them
                    highest = np.full_like(held.weight, (1 << width) - 1)
                    origins = np.full(held.scales.shape, 1 - (1 << width), dtype=np.int8)
                    rounded = dataclasses.replace(held.rounded, codes=highest, origins=origins)
                    codes[name] = dataclasses.replace(held, rounded=rounded)
        return float(self.model(allocation, codes).ByteSize()) - allocation.costs.weight_bytes

    def write(
        self, allocation: Allocation, codes: Mapping[str, LayerCodes], dataset: Dataset, path: Path
    ) -> Verification:
        """Write the model and the allocation beside it, both or neither, after checking the model on some images."""
        reference = self.simulation(allocation, codes)
        model = self.model(allocation, codes)
        with replacing(path) as onnx_file:
            onnx.save(model, onnx_file)
            if self.format == "qonnx":
                verification = verify_qonnx(model, self.of.graph, dataset, reference, str(path))
            else:
                exact = TARGETS[allocation.target]
                verification = verify(onnx_file, self.of.graph, dataset, reference, str(path), exact=exact)
            write_text(path.with_suffix(".json"), to_json(allocation))
        return verification
