"""Which models serve: found in folders, proven, swapped and unloaded, the same in every worker."""
