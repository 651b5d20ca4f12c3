"""Gaussians: where they begin, how they are optimised, and how they become pictures."""
