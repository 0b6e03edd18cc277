"""Placement of quantizers, and their grids."""
