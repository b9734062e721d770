"""What a server must outlast, asked of real `slipway serve` processes.

Quick forms are part of `make test`. `make endure` runs the full ones (SLIPWAY_SCALE=full), one after
the other, and prints their figures.
"""
