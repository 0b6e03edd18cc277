"""Graph passes, one per file. Each pass changes the model in place and returns the number of changes.

A pass preserves the function that the model computes and the names of its input and outputs. It can run at any time,
and it is idempotent.
"""
