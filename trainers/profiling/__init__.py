"""How fast a training is, what it needs, what fits; nothing here trains for its own sake."""
