"""Every raw file of a test split through a running server, against its prepared tensor in the runtime.

    python benchmarks/bench_files.py [EXPERIMENT ...]

Run in a project's folder, for experiments whose bundles are built (`dvc repro`). Pictures and sounds are
sent as the files they are; texts and rows of tables are cut out of the source by the csv module alone,
so nothing that prepared the data brings them to the server. A data set without files sends each row as
a file that decodes to it. The prepared row goes through `serving.inference.runtime` by itself; label and
numbers have to be the same.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np

sys.path.append(str(Path(__file__).parent))

from served import Served

from pipeline import prepared
from pipeline.bundle.decode import encode
from pipeline.bundle.manifest import Bundle, Manifest, read
from pipeline.data.texts import DELIMITERS, SUFFIXES
from serving.config import RuntimeSettings
from serving.errors import Unsupported
from serving.inference import prediction
from serving.inference.runtime import open_session
from serving.protocol import Reading
from stages.layout import Layout
from stages.params import Experiment, load

TOLERANCE = 1e-6
"""Largest difference allowed, as a share of the largest absolute answer (at least of 1)."""


@dataclass(frozen=True)
class Compared:
    """How many files were asked about, for how many the answer was the prepared row's, and how near."""

    files: int
    equal: int
    identical: int
    """Those whose numbers are the same to the last bit."""
    largest: float
    """Largest difference, as a share of the largest absolute answer (at least of 1)."""
    wrong: tuple[str, ...]
    """The first of those that differ."""


@click.command()
@click.argument("names", metavar="[EXPERIMENT]...", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Print, for each experiment with a bundle, how many test files are answered as their rows."""
    known, failed = load(), False
    for name in names or [name for name in known if Layout(name).bundle.is_dir()]:
        try:
            prediction.answering(read(Layout(name).bundle).manifest)
        except Unsupported as error:
            print(f"{name}: left out: {error}")
            continue
        with Served(str(Layout(name).bundle), "--no-grpc") as server:
            found = compare(known[name], Path(), server.url)
        failed |= found.equal < found.files
        print(
            f"{name} ({known[name].data.config.name}): {found.equal} of {found.files} files answered as "
            f"their prepared rows, {found.identical} to the last bit; largest difference "
            f"{found.largest:.2g}",
            *found.wrong,
            sep="\n  ",
            flush=True,
        )
    sys.exit(failed)


def compare(experiment: Experiment, project: Path, url: str) -> Compared:
    """Every test row of an experiment, as a file to the server at `url` and as a tensor here."""
    layout = Layout(experiment.name)
    bundle = read(project / layout.bundle)
    rows = prepared.read(project / layout.data, "test")
    ask = by_tensor(bundle)
    near, wrong, identical, count = [], [], 0, 0
    with asking(url, bundle.manifest) as by_file:
        for number, (name, payload) in enumerate(raw_files(experiment, project)):
            expected, got = ask(rows.take(slice(number, number + 1))), by_file(payload)
            difference = apart(got, expected)
            identical += got == expected
            near.append(difference)
            if not difference <= TOLERANCE or (got.label, got.labels) != (
                expected.label,
                expected.labels,
            ):
                wrong.append(f"{name}: {got.told()}, and the prepared row {expected.told()}")
            count += 1
    if count != len(rows):
        raise click.ClickException(f"{count} raw files for {len(rows)} test rows")
    return Compared(count, count - len(wrong), identical, max(near), tuple(wrong[:5]))


def by_tensor(bundle: Bundle) -> Callable[[dict[str, np.ndarray]], Reading]:
    """What the bundle's graph says of one prepared row, without a server or a decoder."""
    variant = bundle.manifest.variants["fp32"]
    session = open_session(bundle.contents[variant.file], RuntimeSettings())
    output = prediction.answering(bundle.manifest)
    return lambda row: prediction.reading(output, session.run(row))


class asking:  # read as a verb
    """What sends a file's bytes to a server, over one connection."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._path = f"/v2/models/{manifest.name}/predict"
        self._type = prediction.media(manifest)[0].replace("*", "x-any")

    def __enter__(self) -> Callable[[bytes], Reading]:
        return self._ask

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _ask(self, payload: bytes) -> Reading:
        self._connection.request("POST", self._path, payload, {"Content-Type": self._type})
        answer = self._connection.getresponse()
        told: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise click.ClickException(f"{answer.status}: {told}")
        fields = Reading.__dataclass_fields__
        known = {key: value for key, value in told.items() if key in fields}
        if "labels" in known:
            known["labels"] = tuple(known["labels"])
        return Reading(**known)


def apart(got: Reading, expected: Reading) -> float:
    """The largest difference of two answers, as a share of the largest absolute number (or of 1)."""
    if expected.prediction is not None:
        assert got.prediction is not None
        return abs(got.prediction - expected.prediction) / max(1.0, abs(expected.prediction))
    if got.probabilities.keys() != expected.probabilities.keys():
        return float("inf")
    return max(abs(got.probabilities[k] - v) for k, v in expected.probabilities.items())


def raw_files(experiment: Experiment, project: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of each test row as it came, in the order of the prepared split."""
    config, data = experiment.data.config, project / Layout(experiment.name).data
    files = prepared.read_files(data, "test")
    if files is not None:
        from pipeline.folders import source

        with source.find(project / config.path, "a folder or a tar").opened() as read_file:
            for name in files:
                yield name, read_file(name)
        return
    if config.name not in CUT:
        yield from _encoded(data)
        return
    cut = CUT[config.name](config, project / config.path)
    for row in dealt(experiment, project):
        yield f"row {row}", cut(row)


def dealt(experiment: Experiment, project: Path) -> np.ndarray:
    """The numbers of the test rows, dealt again. Raises where that gives other data than is prepared."""
    config, data = experiment.data.config, project / Layout(experiment.name).data
    with tempfile.TemporaryDirectory() as scratch:
        raw = experiment.data.module.load(config, project)
        manifest, chosen = prepared.prepare(config.name, raw, config.split, Path(scratch))
    if prepared.digest(manifest) != prepared.digest(prepared.read_manifest(data)):
        raise click.ClickException(f"{data}: prepared from other data; run `dvc repro`")
    return chosen["test"]


def _encoded(data: Path) -> Iterator[tuple[str, bytes]]:
    (declared,) = prepared.read_manifest(data).inputs
    assert declared.decoder is not None
    for number, row in enumerate(prepared.read(data, "test").arrays[declared.name]):
        yield f"row {number}", encode(declared.decoder, np.array(row))[1]


def _of_texts(config: Any, path: Path) -> Callable[[int], bytes]:
    """The cell of a text, with whatever stands around it."""
    usual = SUFFIXES.get(path.suffix.lower(), "comma")
    delimiter = DELIMITERS[usual if config.delimiter == "auto" else config.delimiter]
    quoting = csv.QUOTE_MINIMAL if config.quoting else csv.QUOTE_NONE
    text = path.read_bytes().decode(config.encoding).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    header, *rows = [row for row in reader if row]
    place = [name.strip() for name in header].index(config.text)
    return lambda row: rows[row][place].encode()


def _of_table(config: Any, path: Path) -> Callable[[int], bytes]:
    """The header and one row, every cell as it stands there, the target among them."""
    text = path.read_text("utf-8-sig")
    mark = max(",\t;|", key=text.partition("\n")[0].count)
    header, *rows = [
        row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark) if row
    ]

    def cut(row: int) -> bytes:
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=mark).writerows([header, rows[row]])
        return written.getvalue().encode()

    return cut


CUT = {"texts": _of_texts, "table": _of_table}
"""By data set, what cuts a row out of its file."""


if __name__ == "__main__":
    main()
