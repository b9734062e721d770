"""`slipway predict`: what a bundle, or a server, makes of a file."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import click
from pydantic import ValidationError

from pipeline.bundle.decode import DecodeError, Decoder, ImageDecoder, decode
from pipeline.bundle.manifest import Bundle, BundleError, read
from serving.commands.folders import fail, resolve_bundle
from serving.commands.hints import hint

TIMEOUT_SECONDS = 30
BAR_WIDTH = 24
MAX_ANSWER_BYTES = 64 << 20


class PredictError(Exception):
    """There is no answer; the message says why."""


@click.command()
@click.argument("where", metavar="BUNDLE_OR_URL")
@click.argument("file", metavar="FILE")
@click.option("--invert", is_flag=True, help="The picture is dark on light, such as ink on paper.")
@click.option("--json", "as_json", is_flag=True, help="Print label and probabilities as JSON.")
def command(where: str, file: str, invert: bool, as_json: bool) -> None:
    """Ask a bundle or a running server about FILE ('-' reads standard input).

    BUNDLE_OR_URL is a bundle's folder, the bare name of one in ./bundles, the address of a server
    that serves one model (http://127.0.0.1:8000), or of a model (http://.../v2/models/NAME).
    """
    payload = _payload(file)
    try:
        if where.startswith(("http://", "https://")):
            label, probabilities, decoder = ask_server(where, payload, invert)
        else:
            label, probabilities, decoder = ask_bundle(resolve_bundle(where), payload, invert)
    except (BundleError, DecodeError, PredictError) as error:
        fail(error)
    if as_json:
        click.echo(json.dumps({"label": label, "probabilities": probabilities}, ensure_ascii=False))
    else:
        click.echo(drawn(label, probabilities))
    if decoder is not None and (told := hint(decoder, payload, invert=invert)):
        click.echo(f"hint: {told}", err=True)


def ask_bundle(
    folder: Path, payload: bytes, invert: bool
) -> tuple[str, dict[str, float], Decoder | None]:
    """(label, probabilities, decoder) from a bundle on this machine, by the code that serves.

    Raises `BundleError`, `DecodeError` or `PredictError`.
    """
    from serving.config import Settings
    from serving.errors import ServingError
    from serving.model import file_door, load, ranked

    bundle: Bundle = read(folder)
    try:
        model = load(bundle, Settings())
        decoder, source, output, labels = file_door(bundle.manifest)
        row = decode(decoder, payload, invert=invert)
        answers = model.session.run({source.name: row[None]})
        label, probabilities = ranked(answers[output.name][0], labels)
    except ServingError as error:
        raise PredictError(f"{folder}: {error}") from error
    return label, probabilities, decoder


def ask_server(
    url: str, payload: bytes, invert: bool
) -> tuple[str, dict[str, float], Decoder | None]:
    """(label, probabilities, decoder if told) from a server. Raises `PredictError`."""
    address = model_address(url)
    query = "?invert=true" if invert else ""
    answer = _ask(f"{address}/predict{query}", payload)
    try:
        label, probabilities = str(answer["label"]), dict(answer["probabilities"])
    except (KeyError, TypeError, ValueError):
        raise PredictError(f"{address}: the answer is not a prediction: {answer!r:.200}") from None
    properties = _ask(address).get("properties")
    decoder = None
    if isinstance(properties, Mapping) and "decoder" in properties:
        try:
            decoder = ImageDecoder.model_validate_json(properties["decoder"])
        except ValidationError:  # a newer server's decoder: no hint then, and no harm
            decoder = None
    return label, probabilities, decoder


def model_address(url: str) -> str:
    """The model a URL means: itself, or the only one its server has. Raises `PredictError`."""
    parts = urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.rstrip("/").removesuffix("/predict").removesuffix("/infer")
    if path.startswith("/v2/models/"):
        return base + path
    if path not in ("", "/v2", "/v2/models"):
        raise PredictError(f"{url}: expected http://HOST:PORT or http://HOST:PORT/v2/models/NAME")
    names = _ask(f"{base}/v2/models").get("models")
    if not isinstance(names, list) or not names:
        raise PredictError(f"{base}: the server has no models")
    if len(names) > 1:
        addresses = "\n".join(f"  {base}/v2/models/{quote(str(name))}" for name in names)
        raise PredictError(f"{base} serves {len(names)} models; name one:\n{addresses}")
    return f"{base}/v2/models/{quote(str(names[0]))}"


def drawn(label: str, probabilities: Mapping[str, float]) -> str:
    """The label, and a bar for each probability, most likely first."""
    ordered = sorted(probabilities.items(), key=lambda item: -item[1])
    width = max(len(name) for name in probabilities)
    lines = [label, ""]
    for name, value in ordered:
        bar = "#" * round(value * BAR_WIDTH)
        lines.append(f"  {name:<{width}}  {100 * value:5.1f} %  {bar}".rstrip())
    return "\n".join(lines)


def _payload(file: str) -> bytes:
    try:
        payload = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file}: cannot be read: {error.strerror}") from error
    if not payload:
        fail(f"{'standard input' if file == '-' else file}: empty, expected a file's bytes")
    return payload


def _ask(url: str, payload: bytes | None = None) -> dict[str, Any]:
    headers = {} if payload is None else {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, payload, headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            answer = json.loads(response.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        raise PredictError(f"{url}: {error.code}: {_told(error.read(MAX_ANSWER_BYTES))}") from None
    except urllib.error.URLError as error:
        raise PredictError(f"{url}: no answer: {error.reason}; is the server running?") from None
    except (OSError, ValueError) as error:
        raise PredictError(f"{url}: no answer that can be read: {error}") from None
    if not isinstance(answer, dict):
        raise PredictError(f"{url}: expected a JSON object, got {answer!r:.200}")
    return answer


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
