"""Fine-tune a quantized network with learned step sizes, in PyTorch (extra `finetune`)."""
