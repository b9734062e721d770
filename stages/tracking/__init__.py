"""The projection of pipeline states into MLflow, and the only package that imports mlflow.

`address`, `state` and `facts` are free of it, so that a stage with nothing to do never wakes it;
`server`, `runs`, `model`, `live` and `registry` are asleep until something must be written.

Importing the package settles what MLflow reads from the environment while it is imported: no
telemetry, no chatter in the output of `dvc repro`, and no proxy between us and our own machine.
"""

import os

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
for _name in ("no_proxy", "NO_PROXY"):
    _known = [host for host in os.environ.get(_name, "").split(",") if host]
    if "*" not in _known:
        _ours = [host for host in ("127.0.0.1", "localhost", "::1") if host not in _known]
        os.environ[_name] = ",".join(_known + _ours)
