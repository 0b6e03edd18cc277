"""Run networks, or parts of them, over all images."""
