"""Read a folder, list file or array file as batches of float32 tensors with labels.

`sources` finds the samples, `choose` selects some of them, `preprocess` converts an image to a tensor, `dataset`
combines these three, and `encoders` computes the features X_E of a dataset.
"""
