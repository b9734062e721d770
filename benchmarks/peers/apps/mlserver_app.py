"""MLServer with a runtime of one's own, in the process itself: its quickest arrangement."""

import json
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    port, grpc = map(int, sys.argv[1:3])
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "http_port": port,
        "grpc_port": grpc,
        "metrics_port": grpc + 1,
        "host": "127.0.0.1",
        "parallel_workers": 0,
        "debug": False,
        "access_log": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "m").mkdir()
    model = {"name": "m", "implementation": "mlserver_app.Network"}
    (folder / "m" / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    program = str(Path(sys.executable).parent / "mlserver")
    os.execv(program, [program, "start", str(folder)])

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from network import session


class Network(MLModel):
    async def load(self):
        self.session = session()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        answer = self.session.run(None, {"input": rows})[0]
        outputs = [NumpyCodec.encode_output("probs", answer)]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
