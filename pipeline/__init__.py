"""Slipway's training half, and the bundle format that both halves share.

Importing this package wakes nothing: no torch, no numpy. `pipeline.bundle` is the part a serving
host also has; everything else here belongs to the machine that trains.
"""
