"""Does the emitted file compute what was simulated?

The file is run twice: node by node, and as stock onnxruntime would run it, with integer kernels. Node by node it does
the simulation's own arithmetic, so its logits must be those of the simulation. Integer kernels round the same sums a
little differently: a value that lies on the boundary between two codes may get the other one, that moves others behind
it, and at low bits or behind many layers logits move visibly. How far they may move is no constant, so it is measured:
the simulation, too, is run in two ways: node by node, and with onnxruntime's float optimisations and all scales of
activations larger by a quarter of a millionth. These differ in nothing but the rounding of sums and in values next to a
boundary. The integer kernels may be some times as far from it as the two are from one another.

A file that is meant for any processor must not depend on this one: that no layer's sums can saturate is proved from the
codes in the file.
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
from infoq_onnx.errors import VerificationError
from infoq_onnx.graph.editing import with_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Verification
from infoq_onnx.simulate.running.batching import batch_size, logits_of

MAX_RELATIVE_RMS_UNFUSED = 0.01
"""Root mean square of the logit differences, as a share of the logits' standard deviation, node by node."""
MAX_RELATIVE_RMS = 0.05
"""The same with integer kernels …"""
MIN_AGREEMENT = 0.97
"""… and the share of images that get the same class, apart from near-ties of the simulation …"""
NOISE_FACTOR = 3.0
"""… or this many times what the simulation's two ways differ by, where that is more."""
_NUDGE = 1 + 2.0**-22


def verify(
    path: Path, graph: Graph, dataset: Dataset, simulation: onnx.ModelProto, name: str, *, exact: bool = True
) -> Verification:
    """Run an emitted file and compare it with the simulation.

    Parameters
    ----------
    path : the file
    graph : the normalised float graph it came from
    dataset : calibration images
    simulation : what it has to compute
    name : what to call the file in messages
    exact : no layer may saturate on a processor without VNNI (see `emit.targets`). Otherwise some may, and where this
        processor is such a one, the kernels of others are emulated

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
            f"{name}: onnxruntime cannot run the emitted model ({first_line(error)}); no file was left"
        ) from error
    if exact and saturated:
        raise VerificationError(
            f"{name}: the sums of {saturated[0]} may saturate on x86 processors without VNNI; no file was left"
        )
    result = compare(simulated, again, fused, unfused)
    # comparisons with NaN are false, so they are written to fail then
    same = result.relative_rms_unfused <= MAX_RELATIVE_RMS_UNFUSED
    near = result.relative_rms <= max(MAX_RELATIVE_RMS, NOISE_FACTOR * result.noise_rms)
    agrees = 1 - result.agreement <= max(1 - MIN_AGREEMENT, NOISE_FACTOR * (1 - result.noise_agreement))
    if not (same and near and agrees):
        worst = float(np.maximum(result.relative_rms, result.relative_rms_unfused))
        raise VerificationError(
            f"{name}: the emitted model disagrees with the simulation on {result.images} images (largest logit "
            f"difference {result.max_difference:.4g}, {100 * worst:.1f} % of the logits' spread, top-1 agreement "
            f"{100 * result.agreement:.1f} %); no file was left"
        )
    return dataclasses.replace(result, kernels=kernels, emulated=emulated)


def nudged(simulation: onnx.ModelProto) -> onnx.ModelProto:
    """Make the scale of every quantizer larger by a quarter of a millionth, two steps of a float32.

    Sums in another order alone reach too few boundaries: on mobilenetv2 at 4 bits they move logits by 0.5 % of their
    spread and integer kernels by 6 %, though near the input one code in a million differs and no mean shifts anywhere.
    The nudge moves them by 13 %.
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
    """Compare logits [N, C]: of the simulation, of the simulation run in another way, and of a file run in two ways."""
    reference = simulated.astype(np.float64)
    spread = float(reference.std()) or 1.0
    ordered = np.sort(reference, axis=1)
    lead = ordered[:, -1] - ordered[:, -2] if reference.shape[1] > 1 else np.zeros(len(reference))

    def relative_rms(logits: npt.NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((logits.astype(np.float64) - reference) ** 2)) / spread)

    def agreement(logits: npt.NDArray[np.float32], tolerated: float) -> float:
        # logits that lie closer than the arithmetic may move them have no order that a run could be held to
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
