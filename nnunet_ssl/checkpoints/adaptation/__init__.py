"""Any checkpoint into any network that has something in common with it, and a report of what became of every weight."""
