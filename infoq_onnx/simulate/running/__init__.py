"""Networks, whole or in part, run over all images."""
