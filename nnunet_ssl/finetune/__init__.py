"""What trains when in a fine-tuning, and how fast."""
