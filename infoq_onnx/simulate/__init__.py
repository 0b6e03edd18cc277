"""4 · Simulation: the quantized network as a float graph, with quantizer placement, rounding and partial reruns.

`sensitivity` tries bit-widths on this graph. `emit` writes the integer model from the same placement and is checked
against the simulation.
"""
