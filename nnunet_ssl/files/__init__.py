"""Files that several processes share, and that a kill or a full disk must not break."""
