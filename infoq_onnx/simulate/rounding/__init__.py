"""Rounding methods by name: to nearest, or so that layers reproduce the outputs of the float network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infoq_onnx.errors import SettingsError, setting
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from infoq_onnx.simulate.rounding.sequential import round_sequential
from infoq_onnx.simulate.simulation import LayerCodes

__all__ = ["ROUNDINGS", "RoundingMethod", "get_rounding"]


@dataclass(frozen=True)
class RoundingMethod:
    """A method to round weights. A layer that neither function rounds gets its nearest codes."""

    layerwise: Callable[..., CodeTable] | None = None
    """Rounds every layer independently at several bit-widths, see `round_layerwise`."""
    sequential: Callable[..., dict[str, LayerCodes]] | None = None
    """Rounds one layer after the other at the bit-widths of an allocation, see `round_sequential`."""

    @property
    def reads_images(self) -> bool:
        """Whether codes depend on the layers' inputs, and therefore on calibration images."""
        return self.layerwise is not None or self.sequential is not None


ROUNDINGS: Mapping[str, RoundingMethod] = {
    "nearest": RoundingMethod(),
    "gptq": RoundingMethod(round_layerwise, round_sequential),
}


def get_rounding(name: str, of: str = "rounding") -> RoundingMethod:
    """Return the rounding method with a name.

    Parameters
    ----------
    name : a key of `ROUNDINGS`
    of : setting that the name comes from, for the error message

    Returns
    -------
    RoundingMethod

    Raises
    ------
    SettingsError
        No method has that name.
    """
    if name not in ROUNDINGS:
        raise SettingsError(f"{setting(of)} {name}: choose {' or '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
