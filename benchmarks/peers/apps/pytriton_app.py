"""NVIDIA pytriton: Triton's server before a Python function."""

import sys

import numpy as np
from network import session
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

network = session()
port, grpc = map(int, sys.argv[1:3])


@batch
def infer(input):
    return {"probs": network.run(None, {"input": input})[0]}


config = TritonConfig(
    http_port=port,
    grpc_port=grpc,
    metrics_port=grpc + 1,
    http_address="127.0.0.1",
    grpc_address="127.0.0.1",
    metrics_address="127.0.0.1",
)
with Triton(config=config) as triton:
    triton.bind(
        "m",
        infer,
        inputs=[Tensor(name="input", dtype=np.float32, shape=(1, 28, 28))],
        outputs=[Tensor(name="probs", dtype=np.float32, shape=(10,))],
        config=ModelConfig(max_batch_size=32, batching=True, batcher=DynamicBatcher(0)),
    )
    triton.serve()
