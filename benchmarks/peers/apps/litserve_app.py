"""LitServe with its batching."""

import sys

import litserve
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device):
        from network import session

        self.session = session()

    def decode_request(self, request):
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def batch(self, inputs):
        self.rows = [len(one) for one in inputs]
        return np.concatenate(inputs)

    def predict(self, rows):
        return self.session.run(None, {"input": rows})[0]

    def unbatch(self, answers):
        return list(np.split(answers, np.cumsum(self.rows)[:-1]))

    def encode_response(self, answer):
        tensor = {"name": "probs", "shape": list(answer.shape), "datatype": "FP32"}
        return {"model_name": "m", "outputs": [tensor | {"data": answer.ravel().tolist()}]}


if __name__ == "__main__":
    api = Api(api_path="/v2/models/m/infer", max_batch_size=32, batch_timeout=0.002)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
