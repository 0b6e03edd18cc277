"""What the processor that a model is meant for asks of it.

Without VNNI, x86 multiplies bytes in pairs and adds each pair in 16 bits, where 255 · 127 · 2 does not fit:
onnxruntime's integer kernels then saturate, and compute something else than was simulated. With weights of 7 bits
nothing can overflow, as 255 · 64 · 2 = 32640.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infoq_onnx.schema import BASELINE_BITS

TARGETS: dict[str, int] = {"any": BASELINE_BITS, "x86-avx2": 7}
"""Name → most bits of a weight."""

_CPUINFO = Path("/proc/cpuinfo")


def saturates(weight_bits: Iterable[int]) -> bool:
    """Whether this processor's integer kernels may saturate with weights of such bits."""
    return max(weight_bits, default=0) > TARGETS["x86-avx2"] and lacks_vnni()


def lacks_vnni(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this processor is an x86 without VNNI; False where that cannot be told."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return bool(flags) and not {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}.intersection(flags)
