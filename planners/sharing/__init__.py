"""Preprocessing that many processes share, that is continued, and that follows what changed."""
