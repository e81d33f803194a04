"""One file per command: parses, validates, calls."""
