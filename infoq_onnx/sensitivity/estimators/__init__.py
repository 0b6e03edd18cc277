"""Estimators of mutual information from samples, in nats: KSG-1, Ross, and their means over random projections.

The functions take arrays and return numbers; they know nothing of models. Invalid input raises ValueError. numba
compiles the kernels at their first call and caches them on disk where possible. Importing compiles nothing.
"""

from infoq_onnx.sensitivity.estimators.ksg import (
    Prepared,
    jitter,
    ksg,
    ksg_batch,
    ksg_prepared,
    prepare,
    standardize,
)
from infoq_onnx.sensitivity.estimators.ross import ross, ross_batch
from infoq_onnx.sensitivity.estimators.sliced import (
    Estimate,
    directions,
    paired_difference,
    prepare_projections,
    sliced_mi,
    sliced_mi_discrete,
    smi_discrete_from_projections,
    smi_from_prepared,
    smi_from_projections,
)

__all__ = [
    "Estimate",
    "Prepared",
    "directions",
    "jitter",
    "ksg",
    "ksg_batch",
    "ksg_prepared",
    "paired_difference",
    "prepare",
    "prepare_projections",
    "ross",
    "ross_batch",
    "sliced_mi",
    "sliced_mi_discrete",
    "smi_discrete_from_projections",
    "smi_from_prepared",
    "smi_from_projections",
    "standardize",
]
