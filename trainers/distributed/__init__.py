"""Several processes that train one network: who waits for whom, and FSDP."""
