"""Checkpoints for others: nnssl's format, safetensors, models for stock nnU-Net."""
