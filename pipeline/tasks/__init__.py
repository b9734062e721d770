"""Tasks, one per file: what the network is taught and what of it is shipped."""
