"""Channels of one tensor are given ranges more alike, without a change of what the network computes."""
