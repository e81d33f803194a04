"""Planners, fingerprint and preprocessor of nnU-Net for images without labels (nnunet_ssl.planners)."""
