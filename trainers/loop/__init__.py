"""What happens while a run goes on: steps, epochs, checkpoints, validation, signals, and what is said about it."""
