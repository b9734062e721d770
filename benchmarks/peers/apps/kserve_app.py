"""KServe's Python model server with a model of one's own."""

import kserve
import numpy as np
from network import session


class Model(kserve.Model):
    def __init__(self):
        super().__init__("m")
        self.session = session()
        self.ready = True

    def predict(self, payload, headers=None):
        rows = payload.inputs[0].as_numpy().astype(np.float32, copy=False)
        answer = self.session.run(None, {"input": rows})[0]
        output = kserve.InferOutput("probs", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=bool(payload.use_binary_outputs))
        return kserve.InferResponse(payload.id or "0", "m", [output])


if __name__ == "__main__":
    kserve.ModelServer(access_log_format=None).start([Model()])
