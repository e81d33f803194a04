"""What is to be told from a whole image: tables of targets, folds for them, probes on features, measures of success."""
