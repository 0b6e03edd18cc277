"""3 · the numbers: grids, ranges and scales. numpy and numba only; nothing of models."""
