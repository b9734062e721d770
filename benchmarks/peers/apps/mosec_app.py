"""mosec: a native front, Python workers, dynamic batching. JSON as V2 has it, or raw float32."""

import os

import numpy as np
import orjson
from mosec import Runtime, Server, Worker

ROWS = int(os.environ["ROWS"])


class Json(Worker):
    def __init__(self):
        from network import session

        self.session = session()

    def deserialize(self, data):
        tensor = orjson.loads(data)["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def serialize(self, answer):
        tensor = {"name": "probs", "shape": list(answer.shape), "datatype": "FP32"}
        body = {"model_name": "m", "outputs": [tensor | {"data": answer.ravel()}]}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data):
        if ROWS == 1:
            return self.session.run(None, {"input": data})[0]
        answers = self.session.run(None, {"input": np.concatenate(data)})[0]
        return list(np.split(answers, np.cumsum([len(one) for one in data])[:-1]))


class Raw(Json):
    def deserialize(self, data):
        return np.frombuffer(data, np.float32).reshape(-1, 1, 28, 28)

    def serialize(self, answer):
        return answer.tobytes()


if __name__ == "__main__":
    server = Server()
    wait = int(os.environ["WAIT_MS"])
    server.register_runtime(
        {
            path: [Runtime(worker, num=1, max_batch_size=ROWS, max_wait_time=wait)]
            for path, worker in (("/v2/models/m/infer", Json), ("/raw", Raw))
        }
    )
    server.run()
