"""The machine: devices, precision, compiling, memory."""
