"""Settings: the blocks of the plans, and the one checker of types and bounds that reads them."""
