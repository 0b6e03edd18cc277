"""3 · Numerics: grids, ranges, scales and rounding. Uses numpy, scipy and numba; knows nothing about models."""
