"""Plans for fine-tuning, from those of a checkpoint and of a labelled data set."""
