"""Where quantizers stand, and which grids they have."""
