"""Crops, masks, corruptions and augmentations of batched tensors [B, C, *spatial]; pure torch."""
