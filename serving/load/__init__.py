"""Load on a V2 server, measured: closed loops, open loops, histograms, pictures.

`slipway bench` and `benchmarks/` use it; the server itself never does.
"""
