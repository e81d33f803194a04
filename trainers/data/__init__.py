"""From preprocessed images to batches: which cases, where patches lie, how they are read, turned and brought to the device."""
