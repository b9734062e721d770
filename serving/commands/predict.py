"""`slipway predict`: what a bundle, or a server, makes of a file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import click
from pydantic import TypeAdapter, ValidationError

from pipeline.bundle.decode import DecodeError, Decoder, hint
from pipeline.bundle.manifest import Bundle, BundleError, read
from serving.client import Client, ClientError, InvalidRequest
from serving.commands.folders import fail, resolve_bundle
from serving.protocol import Reading

BAR_WIDTH = 24
KEY_VARIABLE = "SLIPWAY_API_KEY"


class PredictError(Exception):
    """There is no answer; the message says why."""


@click.command()
@click.argument("where", metavar="BUNDLE_OR_URL")
@click.argument("file", metavar="FILE")
@click.option(
    "--invert", is_flag=True, help="FILE is a picture that is dark on light, such as ink on paper."
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Certificates to trust instead of the system's, for https:// addresses.",
)
@click.option(
    "--cert",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Our own certificate with its key, for servers that ask their clients for one.",
)
def command(
    where: str, file: str, invert: bool, as_json: bool, ca: Path | None, cert: Path | None
) -> None:
    """Ask a bundle or a running server about FILE ('-' reads standard input).

    BUNDLE_OR_URL is a bundle's folder, the bare name of one in ./bundles, the address of a server
    that serves one model (http://127.0.0.1:8000), or of a model (http://.../v2/models/NAME). An
    API key is taken from SLIPWAY_API_KEY.
    """
    payload = _payload(file)
    try:
        if where.startswith(("http://", "https://")):
            reading, told = ask_server(where, payload, invert, ca, cert)
        else:
            reading, told = ask_bundle(resolve_bundle(where), payload, invert)
    except DecodeError as error:
        fail(f"{'standard input' if file == '-' else file}: {error}")
    except (BundleError, PredictError) as error:
        fail(error)
    if as_json:
        said = reading.told() | ({"hint": told} if told else {})
        click.echo(json.dumps(said, ensure_ascii=False))
    else:
        click.echo(drawn(reading))
    if told:
        click.echo(f"hint: {told}", err=True)


def ask_bundle(folder: Path, payload: bytes, invert: bool) -> tuple[Reading, str | None]:
    """(answer, hint) from a bundle on this machine, by the code that serves.

    Raises `BundleError`, `DecodeError` or `PredictError`.
    """
    from serving.config import Settings
    from serving.errors import ServingError
    from serving.inference import prediction
    from serving.inference.model import load

    bundle: Bundle = read(folder)
    try:
        model = load(bundle, Settings())
        output = prediction.answering(bundle.manifest)
        row = prediction.row(bundle.manifest, bundle.contents, payload, invert=invert)
        reading = prediction.reading(output, model.session.run(row))
    except ServingError as error:
        raise PredictError(f"{folder}: {error}") from error
    return reading, prediction.hint(bundle.manifest, bundle.contents, payload, invert=invert)


def ask_server(
    url: str, payload: bytes, invert: bool, ca: Path | None = None, cert: Path | None = None
) -> tuple[Reading, str | None]:
    """(answer, hint) from a server. Raises `PredictError`, and `DecodeError` where FILE is at fault."""
    base, name, version = server_address(url)
    try:
        own = (cert, cert) if cert else None
        with Client(base, key=os.environ.get(KEY_VARIABLE), ca=ca, certificate=own) as client:
            name = name or only_model(client)
            answer = client.predict(name, payload, version, invert)
            properties = client.metadata(name, version).properties
    except InvalidRequest as error:
        raise DecodeError(str(error)) from None
    except (ClientError, OSError) as error:
        raise PredictError(str(error)) from None
    told = [text for name, text in properties.items() if name.partition(".")[0] == "decoder"]
    hints = (_hint(decoder, payload, invert) for decoder in told)
    # Ours speaks of --invert; where our side cannot tell, the server's does.
    return answer, next(filter(None, hints), answer.hint)


def _hint(decoder: str, payload: bytes, invert: bool) -> str | None:
    """A hint by the decoder that a server told of, where it needs nothing else of the bundle."""
    try:
        settings = TypeAdapter[Decoder](Decoder).validate_json(decoder)
    except ValidationError:  # a newer server's: no hint then, and no harm
        return None
    return None if settings.reads else hint(settings, payload, invert=invert)


def server_address(url: str) -> tuple[str, str | None, str | None]:
    """(server, model or none, version or none) that a URL means. Raises `PredictError`."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/predict").removesuffix("/infer")
    prefix, found, rest = f"{path}/".partition("/v2/")
    base, steps = f"{parts.scheme}://{parts.netloc}{prefix.rstrip('/')}", rest.split("/")
    match [unquote(step) for step in steps]:
        case [""] | ["models", ""] if found or prefix == "/":
            return base, None, None
        case ["models", name, ""]:
            return base, name, None
        case ["models", name, "versions", version, ""]:
            return base, name, version
    raise PredictError(f"{url}: expected http://HOST:PORT or http://HOST:PORT/v2/models/NAME")


def only_model(client: Client) -> str:
    """The name of the only model a server has. Raises `PredictError` listing several."""
    names = client.models()
    if not names:
        raise PredictError(f"{client.url}: the server has no models")
    if len(names) > 1:
        addresses = "\n".join(f"  {client.url}/v2/models/{quote(name, safe='')}" for name in names)
        raise PredictError(f"{client.url} serves {len(names)} models; name one:\n{addresses}")
    return names[0]


def drawn(reading: Reading) -> str:
    """The number; or the label or labels, and a bar for each probability, most likely first."""
    if reading.prediction is not None:
        return f"{reading.prediction:.7g} {reading.units or ''}".rstrip()
    ordered = sorted(reading.probabilities.items(), key=lambda item: -item[1])
    width = max(len(name) for name in reading.probabilities)
    said = reading.label if reading.labels is None else ", ".join(reading.labels) or "none"
    lines = [said or "", ""]
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
