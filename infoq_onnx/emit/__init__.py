"""Stage 6: emit the mixed-precision model as an ONNX file of standard operators, and verify it."""
