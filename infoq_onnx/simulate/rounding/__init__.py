"""Weights rounded to compute what the float network does."""
