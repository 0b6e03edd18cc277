"""From a folder, list or array file to batches of float32 tensors with labels.

`sources` finds the samples, `choose` picks some, `preprocess` turns an image into a tensor, `dataset` joins the three,
and `encoders` condense a dataset into the features X_E.
"""
