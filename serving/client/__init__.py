"""A small typed client of a V2 server, numpy in and out: `Client` blocks, `AsyncClient` awaits.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.infer("digits-cnn", {"image": pixels})
        answer["probabilities"]

`docs/client.md` has the rest. Every call has one deadline; what may be tried again is, within it.
"""

from serving.client.answers import Answer
from serving.client.asynchronous import AsyncClient
from serving.client.blocking import Client
from serving.client.errors import (
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    Unauthorized,
    Unreachable,
)
from serving.protocol import IndexEntry, ModelMetadata, Prediction, TensorSpec

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "IndexEntry",
    "InvalidRequest",
    "ModelMetadata",
    "NotFound",
    "Overloaded",
    "Prediction",
    "ServerError",
    "TensorSpec",
    "Unauthorized",
    "Unreachable",
]
