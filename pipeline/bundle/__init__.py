"""What an exported model is: its manifest, its tensors, and how raw bytes become its input.

Torch-free on purpose: training writes a bundle and serving reads it, both through this package.
"""
