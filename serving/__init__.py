"""The server: a bundle in, answers out, over the Open Inference Protocol V2.

Doors, codecs, data plane, models, inference (model, batching, runtime): each file
imports only files further down that line, and `app.py` builds them all. Nothing here imports torch
or the training half.
"""
