"""The server: a bundle in, answers out, over the Open Inference Protocol V2.

A request goes down this list, and its answer back up as return values; `app.py` builds it all.

    doors/http, doors/grpc    bytes, connections, keys, routes, statuses
    codecs/                   wire to request, answer to wire
    dataplane.py              the only way in, whatever the door
    models/                   which models serve, in which versions
    inference/                how one of them answers: model.py, batching.py, runtime.py

Beside them: `workers/` has the processes, `observability/` what is counted and written down, `system/`
what is asked of the operating system. Each file imports only files further down the list in
`tests/test_boundaries.py`, and none imports torch or the training half.
"""
