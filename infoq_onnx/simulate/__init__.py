"""4 · the quantized network as a float graph: where quantizers stand, what it then computes, and reruns of a part.

`sensitivity` tries bit-widths on it, `emit` writes the integer model from the same placement and is checked against it.
"""
