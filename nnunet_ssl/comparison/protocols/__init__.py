"""The evaluations of the papers, as descriptions: which data sets, split and trained how, and what was published."""
