"""Images without labels: found, checked, described, registered as an nnU-Net data set without a copy."""
