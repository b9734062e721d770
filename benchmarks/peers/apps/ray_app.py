"""Ray Serve with its batching."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve

HERE = str(Path(__file__).parent)


@serve.deployment(num_replicas=1, max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.5})
class Model:
    def __init__(self):
        sys.path.insert(0, HERE)
        from network import session

        self.session = session()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)
    async def run(self, inputs):
        answers = self.session.run(None, {"input": np.concatenate(inputs)})[0]
        return list(np.split(answers, np.cumsum([len(one) for one in inputs])[:-1]))

    async def __call__(self, request):
        tensor = (await request.json())["inputs"][0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        answer = await self.run(rows)
        told = {"name": "probs", "shape": list(answer.shape), "datatype": "FP32"}
        return {"model_name": "m", "outputs": [told | {"data": answer.ravel().tolist()}]}


ray.init(
    num_cpus=2,
    include_dashboard=False,
    _node_ip_address="127.0.0.1",
    logging_level="error",
    runtime_env={"env_vars": {name: os.environ[name] for name in ("MODEL", "MODELS")}},
)
serve.start(
    http_options={"host": "127.0.0.1", "port": int(sys.argv[1])},
    logging_config={"enable_access_log": False},
)
serve.run(Model.bind(), route_prefix="/")
while True:
    time.sleep(1)
