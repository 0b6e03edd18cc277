"""Build, measure, check and write the two files of an allocation."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.qonnx import qonnx_model, verify_qonnx
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import TARGETS
from infoq_onnx.emit.verify import verify
from infoq_onnx.errors import OutputError, SettingsError, setting
from infoq_onnx.evaluation import PREPROCESSING_KEY
from infoq_onnx.files import replacing, sha256_of, write_text
from infoq_onnx.graph.compact import shorten_names
from infoq_onnx.quantize.levels import SHIFTED_BITS
from infoq_onnx.schema import Allocation, OtherVersion, Preprocessing, Verification, read, to_json
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import get_rounding
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

CHECKED_IMAGES = {"qdq": 128, "qonnx": 8}
"""Format → number of images for the check of a file. qonnx executes node by node and takes seconds per image."""

ALLOCATION_KEY = "infoq_onnx.allocation"
"""Metadata of a written model: its allocation, as JSON."""

BUDGET_KEY = "infoq_onnx.budget"
"""Metadata of a written model: the label of its budget."""


@dataclass(frozen=True)
class Emission:
    """Everything that determines the file of a model, except the codes of its weights and the allocation."""

    of: Quantizable
    """The network with its quantizers."""
    storage: str
    """Storage format of weight codes, a key of `emit.storage.STORAGES`."""
    label: str
    """Label of the budget, for the model's metadata."""
    preprocessing: Preprocessing | None
    format: str = "qdq"
    """"qdq" for onnxruntime, "qonnx" for FINN and Brevitas."""

    def model(self, allocation: Allocation, codes: Mapping[str, LayerCodes]) -> onnx.ModelProto:
        """Build the model of an allocation."""
        metadata = {
            "infoq_onnx.version": importlib.metadata.version("infoq-onnx"),
            BUDGET_KEY: self.label,
            ALLOCATION_KEY: to_json(allocation, compact=True),
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
        """Build the simulation, which the file has to reproduce."""
        return simulation(self.of, allocation.bits, codes=codes)

    def overhead(self, allocation: Allocation) -> float:
        """Return an upper limit on the bytes of the file that are not weights.

        Only one property of the codes matters: the origins of their levels take space.
        """
        codes = layer_codes(self.of, allocation.bits)
        if get_rounding(allocation.rounding).reads_images:
            for name, held in codes.items():
                if (width := allocation.weight_bits[name]) <= SHIFTED_BITS:
                    # codes on placed levels that do not fit the bits unchanged, so that origins are stored
                    highest = np.full_like(held.weight, (1 << width) - 1)
                    origins = np.full(held.scales.shape, 1 - (1 << width), dtype=np.int8)
                    rounded = dataclasses.replace(held.rounded, codes=highest, origins=origins)
                    codes[name] = dataclasses.replace(held, rounded=rounded)
        return float(self.model(allocation, codes).ByteSize()) - allocation.costs.weight_bytes

    def write(
        self, allocation: Allocation, codes: Mapping[str, LayerCodes], dataset: Dataset, path: Path
    ) -> Verification:
        """Write the model, check it on some images, and write the allocation next to it. On failure, leave no file.

        Parameters
        ----------
        allocation : the allocation
        codes : codes of the layers
        dataset : images for the check
        path : ONNX file to write

        Returns
        -------
        Verification

        Raises
        ------
        VerificationError
            The model does not compute what was simulated.
        OutputError
            A file cannot be written.
        """
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


def require_replaceable(path: Path, model: Path, *, force: bool) -> None:
    """Refuse to replace files that `allocate` did not write.

    Parameters
    ----------
    path : ONNX file to write; the allocation goes beside it
    model : the float model, which is never replaced
    force : replace other files

    Raises
    ------
    SettingsError
        A file exists and would be lost.
    OutputError
        A file exists and cannot be read.
    """
    # for a name that is too long or a folder without access, os.path returns False; writing then reports the error
    if os.path.realpath(path) == os.path.realpath(model) or (os.path.isfile(path) and _same_content(path, model)):
        raise SettingsError(f"{setting('output')} {path} is the float model itself; choose another name")
    for file, what, is_ours in (
        (path, "a model that infoq-onnx wrote", _is_model_of_ours),
        (path.with_suffix(".json"), "an allocation", _is_allocation),
    ):
        # a folder cannot be replaced, and writing says so
        if not os.path.lexists(file) or os.path.isdir(file):
            continue
        if not os.path.isfile(file):
            kind = "a link to a file that is gone" if os.path.islink(file) else "not a regular file"
            raise SettingsError(f"{setting('output')} {path}: {file} is {kind}; choose another name")
        if not force and not is_ours(file):
            there = "exists and" if file == path else f"would replace {file}, which"
            raise SettingsError(
                f"{setting('output')} {path} {there} is not {what}; choose another name, or replace it with "
                f"{setting('force')}"
            )


def _is_model_of_ours(path: Path) -> bool:
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError):
        return False
    return any(entry.key == ALLOCATION_KEY for entry in model.metadata_props)


def _is_allocation(path: Path) -> bool:
    try:
        read(Allocation, path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, OtherVersion):
        return False
    return True


def _same_content(path: Path, model: Path) -> bool:
    try:
        return sha256_of(path) == sha256_of(model)
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}; choose another name") from error
