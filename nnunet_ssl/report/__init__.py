"""Pictures, curves, pages."""
