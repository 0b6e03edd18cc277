"""Graph passes, one a file. Each changes the model in place and returns how many things it changed.

A pass keeps what the model computes and the names of its input and outputs; it may be run at any time, and running it
again on its own result changes nothing.
"""
