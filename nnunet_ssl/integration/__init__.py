"""The only room that knows nnU-Net's internals: class look-up, weight loading, differences between versions."""
