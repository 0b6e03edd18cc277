"""6 · the mixed-precision model: an ONNX file of standard operators, and the check that it computes what was
simulated.
"""
