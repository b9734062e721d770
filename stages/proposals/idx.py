"""Four idx files of the MNIST family in one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.dataset import counted
from stages import budget
from stages.proposals import Hints, Learning, Proposal, quoted, written

READS = "a folder with the four idx files of the MNIST family"


def propose(source: Path, hints: Hints) -> Proposal | None:
    """Network and passes for the files. Raises `DataError` where one is damaged."""
    names = (
        {path.name.removesuffix(".gz") for path in source.iterdir()} if source.is_dir() else set()
    )
    if not names & set(idx.FILES):
        return None
    files = idx.find(source)
    images, labels = idx.read(files[0], axes=3), idx.read(files[1], axes=1)
    classes = int(max(labels.max(initial=0), idx.read(files[3], axes=1).max(initial=0))) + 1
    rows, size = round(0.9 * len(images)), (images.shape[1], images.shape[2])
    choice = budget.choose(rows, classes, size, channels=1, resize=False)
    minutes = counted(max(1, round(choice.minutes)), "minute")
    data = TEXT.format(
        path=quoted(str(source)),
        title=quoted(f"idx files of {source.name or source.resolve().name}"),
        labels="\n".join(f'    - "{number}"' for number in range(classes)),
        fit="lanczos" if min(size) > 16 else "box",
    )
    learning = Learning(
        choice.epochs,
        choice.batch_size,
        augment="    shift: 1.5\n",
        told=f"  # About {minutes} on one thread.\n",
    )
    least = int(np.bincount(labels, minlength=classes).min()) if len(labels) else 0
    return Proposal(
        written(data, choice.model, TASK, learning),
        (
            f"{len(images)} pictures of {size[0]}x{size[1]} in {classes} classes, at least {least} "
            "of each, and a test set",
            f"network {choice.model['name']}, width {choice.model['width']}, {choice.epochs} "
            f"epochs: at most {minutes} on one thread",
            "the classes are called by their numbers: name them under data.labels",
        ),
    )


TASK = """\
  name: classification
  label_smoothing: 0.0
"""
TEXT = """\
data:
  name: idx
  path: {path}
  title: {title}
  licence: not stated
  # How a picture of another size is brought to the model's, when it serves.
  fit:
    fit: pad
    filter: {fit}
  labels:
{labels}
  split:
    validation: 0.1
    test: 0.2
    seed: 0
"""
