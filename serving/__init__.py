"""The server: a bundle in, answers out, over the Open Inference Protocol V2.

Doors (`http.py`, `rest.py`), codec, data plane, repository, model, batching, runtime: each file
imports only files further down that line, and `app.py` builds them all. Nothing here imports torch
or the training half.
"""
