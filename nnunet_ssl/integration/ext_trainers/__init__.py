"""A folder for nnUNet_extTrainer, for environments where torch's plugin loading is switched off."""
