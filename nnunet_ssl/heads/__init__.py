"""What pretext tasks put on a backbone; pure torch."""
