"""BentoML with adaptive batching; its own JSON, a nested list by the argument's name."""

import bentoml
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Model:
    def __init__(self):
        from network import session

        self.session = session()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=10000)
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"input": np.asarray(x, np.float32)})[0]
