"""Check that the emitted file computes what was simulated.

The file runs in two ways: node by node, and with integer kernels as in stock onnxruntime. Node by node, the file does
the same arithmetic as the simulation, so the logits must agree. Integer kernels round the same sums slightly
differently. A value on the boundary between two codes can get the other code, the difference propagates, and at low
bits or after many layers the logits change visibly.

The tolerance for this change is measured. The simulation also runs in two ways: node by node, and with onnxruntime's
float optimisations and all activation scales increased by a quarter of a millionth. The two runs differ only in the
rounding of sums and in values next to a boundary. The integer kernels may differ from the simulation by a multiple of
the difference between the two runs.

The check of a file for any processor must not depend on the processor that runs the check. That no layer's sums can
saturate is therefore proved from the codes in the file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.saturation import with_unsigned_weights
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.errors import VerificationError, setting
from infoq_onnx.graph.editing import with_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Verification
from infoq_onnx.simulate.running.batching import batch_size, logits_of

MAX_RELATIVE_RMS_UNFUSED = 0.01
"""Node by node: largest root mean square of the logit differences, as a share of the logits' standard deviation."""
MAX_RELATIVE_RMS = 0.05
"""The same with integer kernels. NOISE_FACTOR can loosen this limit."""
MIN_AGREEMENT = 0.97
"""Minimum share of images with the same class, not counting near-ties of the simulation. NOISE_FACTOR can loosen it."""
NOISE_FACTOR = 3.0
"""Integer kernels may always differ by this multiple of the difference between the simulation's two runs."""
_NUDGE = 1 + 2.0**-22


def verify(
    path: Path, graph: Graph, dataset: Dataset, simulation: onnx.ModelProto, name: str, *, exact: bool = True
) -> Verification:
    """Run an emitted file and compare it with the simulation.

    Parameters
    ----------
    path : the file
    graph : the normalised float graph of the file
    dataset : calibration images
    simulation : the reference
    name : name of the file in messages
    exact : no layer may saturate on a processor without VNNI (see `emit.targets`). If False, layers may saturate, and
        on a processor without VNNI the check emulates kernels that do not saturate

    Returns
    -------
    Verification

    Raises
    ------
    VerificationError
        onnxruntime cannot run the file, or it disagrees with the simulation.
    """
    size = batch_size(graph)
    simulated = logits_of(open_session(simulation, optimize=False), graph, dataset, size)
    again = logits_of(open_session(nudged(simulation), integer_kernels=False), graph, dataset, size)
    try:
        content = path.read_bytes()
        kernels = find_kernels(onnx.load_from_string(content))
        saturated = [kernel.layer for kernel in kernels if kernel.saturates]
        emulated = bool(saturated) and lacks_vnni()
        run = with_unsigned_weights(onnx.load_from_string(content)) if emulated else content
        fused = logits_of(open_session(run), graph, dataset, size)
        unfused = logits_of(open_session(content, optimize=False), graph, dataset, size)
    except ORT_ERRORS as error:
        raise VerificationError(
            f"{name}: onnxruntime cannot run the emitted model ({first_line(error)}); no file was left: try another "
            f"{setting('storage')}, or report it"
        ) from error
    if exact and saturated:
        raise VerificationError(
            f"{name}: the sums of {saturated[0]} may saturate on x86 processors without VNNI; no file was left: try "
            f"another {setting('rounding')}, or report it"
        )
    result = compare(simulated, again, fused, unfused)
    # comparisons with NaN are false, so NaN must make the check fail
    same = result.relative_rms_unfused <= MAX_RELATIVE_RMS_UNFUSED
    near = result.relative_rms <= max(MAX_RELATIVE_RMS, NOISE_FACTOR * result.noise_rms)
    agrees = 1 - result.agreement <= max(1 - MIN_AGREEMENT, NOISE_FACTOR * (1 - result.noise_agreement))
    if not (same and near and agrees):
        worst = float(np.maximum(result.relative_rms, result.relative_rms_unfused))
        raise VerificationError(
            f"{name}: the emitted model disagrees with the simulation on {result.images} images (largest logit "
            f"difference {result.max_difference:.4g}, {100 * worst:.1f} % of the logits' spread, top-1 agreement "
            f"{100 * result.agreement:.1f} %); no file was left: try another {setting('storage')} or "
            f"{setting('rounding')}, or report it"
        )
    return dataclasses.replace(result, kernels=kernels, emulated=emulated)


def nudged(simulation: onnx.ModelProto) -> onnx.ModelProto:
    """Increase the scale of every quantizer by a quarter of a millionth, two steps of a float32.

    A different order of summation alone changes too few codes. On mobilenetv2 at 4 bits, it moves logits by 0.5 % of
    their spread. Integer kernels move them by 6 %, although near the input only one code in a million differs and no
    mean shifts. The increased scales move logits by 13 %.
    """
    scales = {node.input[1] for node in simulation.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    values = {one.name: numpy_helper.to_array(one) for one in simulation.graph.initializer if one.name in scales}
    return with_initializers(simulation, {name: (value * _NUDGE).astype(np.float32) for name, value in values.items()})


def compare(
    simulated: npt.NDArray[np.float32],
    again: npt.NDArray[np.float32],
    fused: npt.NDArray[np.float32],
    unfused: npt.NDArray[np.float32],
) -> Verification:
    """Compare logits of a file with logits of the simulation.

    Parameters
    ----------
    simulated : logits of the simulation, node by node, [N, C]
    again : logits of the second run of the simulation, [N, C]
    fused : logits of the file with integer kernels, [N, C]
    unfused : logits of the file, node by node, [N, C]

    Returns
    -------
    Verification
    """
    reference = simulated.astype(np.float64)
    spread = float(reference.std()) or 1.0
    ordered = np.sort(reference, axis=1)
    lead = ordered[:, -1] - ordered[:, -2] if reference.shape[1] > 1 else np.zeros(len(reference))

    def relative_rms(logits: npt.NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((logits.astype(np.float64) - reference) ** 2)) / spread)

    def agreement(logits: npt.NDArray[np.float32], tolerated: float) -> float:
        # the order of two logits is undefined if they are closer than the tolerated change
        near_tie = lead <= 2 * tolerated * spread
        return float(np.mean((logits.argmax(axis=1) == simulated.argmax(axis=1)) | near_tie))

    noise = relative_rms(again)
    return Verification(
        images=len(simulated),
        max_difference=float(np.abs(fused.astype(np.float64) - reference).max()),
        relative_rms=relative_rms(fused),
        agreement=agreement(fused, max(MAX_RELATIVE_RMS, NOISE_FACTOR * noise)),
        relative_rms_unfused=relative_rms(unfused),
        noise_rms=noise,
        noise_agreement=agreement(again, MAX_RELATIVE_RMS),
    )
