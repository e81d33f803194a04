"""The networks that a checkpoint or plan may name, and how weights tell which one it was."""
