"""Execute a normalised ONNX graph in PyTorch, so that it can be differentiated (extra `finetune`)."""
