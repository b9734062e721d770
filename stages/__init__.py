"""The pipeline's stages: one file each, run as `python -m stages.NAME EXPERIMENT`.

A stage reads its settings and files, calls `pipeline`, and writes files. What it reads and writes
is declared in `dvc.yaml`.
"""
