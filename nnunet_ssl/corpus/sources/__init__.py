"""Where images come from: folders, tables, BIDS, layouts of known collections."""
