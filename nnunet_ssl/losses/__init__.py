"""Losses and indicators that several pretext tasks share; pure torch."""
