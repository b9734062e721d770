"""Data sets, one per file: `Config` and `load(config, root) -> RawData`."""
