"""Equalisation: make the ranges of a tensor's channels more alike without changing the network's function."""
