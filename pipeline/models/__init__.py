"""Architectures, one per file: `Config` and `build(config, features, outputs) -> Module`."""
