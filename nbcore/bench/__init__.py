"""Measurements of speed, each against the best that others offer, side by side in one run."""
