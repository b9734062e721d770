"""A network as an MLflow model: mlflow_save.py ONNX FOLDER."""

import shutil
import sys

import mlflow.onnx
import onnx

shutil.rmtree(sys.argv[2], ignore_errors=True)
mlflow.onnx.save_model(
    onnx.load(sys.argv[1]),
    sys.argv[2],
    onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    onnx_execution_providers=["CPUExecutionProvider"],
    pip_requirements=["onnx", "onnxruntime"],
)
