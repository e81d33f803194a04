"""Is pre-training worth it on these data? Arms x data sets x folds x seeds x numbers of labels, cell by cell, in one folder."""
