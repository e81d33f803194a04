"""Weights of whatever origin: read safely, described, put into a network, written, published."""
