"""Does the emitted file compute what was simulated?

The file is run twice, as stock onnxruntime would run it (integer kernels) and node by node, and both are compared with
the float simulation on calibration images. Integer kernels round the same sums a little differently, so a value that
lies on the boundary between two codes may get the other one; at low bits one such step moves a logit visibly. What
cannot happen in a right model is that the logits as a whole differ by a notable share of their spread, or that the
predictions change, so these are what is bounded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import VerificationError
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.ort import ORT_ERRORS, first_line
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import Verification
from infoq_onnx.simulate.batching import batch_size, logits_of

MAX_RELATIVE_RMS = 0.05
"""Root mean square of the logit differences, as a share of the logits' standard deviation."""
MIN_AGREEMENT = 0.97
"""Share of images that get the same class, apart from near-ties of the simulation."""


def verify(path: Path, graph: Graph, dataset: Dataset, simulated: npt.NDArray[np.float32], name: str) -> Verification:
    """Run an emitted file and compare it with the simulation.

    Parameters
    ----------
    path : the file
    graph : the normalised float graph it came from
    dataset : calibration images
    simulated : logits [N, C] of the simulation
    name : what to call the file in messages

    Raises
    ------
    VerificationError
        onnxruntime cannot run the file, or it disagrees with the simulation.
    """
    try:
        content = path.read_bytes()
        fused = logits_of(open_session(content), graph, dataset, batch_size(graph))
        unfused = logits_of(open_session(content, optimize=False), graph, dataset, batch_size(graph))
    except ORT_ERRORS as error:
        raise VerificationError(
            f"{name}: onnxruntime cannot run the emitted model ({first_line(error)}); no file was left"
        ) from error
    result = compare(simulated, fused, unfused)
    # unlike Python's max, this lets NaN through from either side
    worst = float(np.maximum(result.relative_rms, result.relative_rms_unfused))
    if not worst <= MAX_RELATIVE_RMS or result.agreement < MIN_AGREEMENT:
        raise VerificationError(
            f"{name}: the emitted model disagrees with the simulation on {result.images} images (largest logit "
            f"difference {result.max_difference:.4g}, {100 * worst:.1f} % of the logits' spread, top-1 agreement "
            f"{100 * result.agreement:.1f} %); no file was left"
        )
    return result


def compare(
    simulated: npt.NDArray[np.float32], fused: npt.NDArray[np.float32], unfused: npt.NDArray[np.float32]
) -> Verification:
    """Compare logits [N, C] of the two ways to run a model with those of its simulation."""
    reference = simulated.astype(np.float64)
    spread = float(reference.std()) or 1.0
    different = np.abs(fused.astype(np.float64) - reference)
    different_unfused = np.abs(unfused.astype(np.float64) - reference)
    # logits that lie closer than the arithmetic's own noise have no order that either model could be held to
    ordered = np.sort(reference, axis=1)
    near_tie = (ordered[:, -1] - ordered[:, -2] <= 2 * MAX_RELATIVE_RMS * spread) if reference.shape[1] > 1 else True
    same = fused.argmax(axis=1) == simulated.argmax(axis=1)
    return Verification(
        images=len(simulated),
        max_difference=float(different.max()),
        relative_rms=float(np.sqrt(np.mean(different**2)) / spread),
        agreement=float(np.mean(same | near_tie)),
        max_difference_unfused=float(different_unfused.max()),
        relative_rms_unfused=float(np.sqrt(np.mean(different_unfused**2)) / spread),
    )
