"""What is this file? Format, network, conventions, provenance, as far as it says."""
