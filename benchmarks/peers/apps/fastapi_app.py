"""FastAPI by hand, as most would write it: typed bodies, a plain function, a response model."""

import numpy as np
from fastapi import FastAPI
from network import session
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Asked(BaseModel):
    inputs: list[Tensor]


class Told(BaseModel):
    model_name: str
    outputs: list[Tensor]


app = FastAPI()
network = session()


@app.post("/v2/models/m/infer")
def infer(asked: Asked) -> Told:
    tensor = asked.inputs[0]
    rows = np.array(tensor.data, np.float32).reshape(tensor.shape)
    answer = network.run(None, {"input": rows})[0]
    told = Tensor(
        name="probs", shape=list(answer.shape), datatype="FP32", data=answer.ravel().tolist()
    )
    return Told(model_name="m", outputs=[told])
