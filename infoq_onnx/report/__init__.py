"""Results as tables. Computes nothing that is not a unit conversion."""
