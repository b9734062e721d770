"""What a server tells people of its models: the OpenAPI document and one page to read and try.

The page needs nothing from elsewhere and reads without JavaScript; its policy lets only the very
script and style run that are written into it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from html import escape
from pathlib import Path

import numpy as np
import orjson

from pipeline.bundle.decode.image import ImageDecoder
from pipeline.bundle.manifest import Tensor
from pipeline.bundle.tensors import BY_NUMPY
from serving.dataplane import DataPlane, Served
from serving.doors.http import openapi
from serving.errors import NotFound
from serving.inference import prediction

PAGES = Path(__file__).with_name("pages")
HOST = re.compile(r"[A-Za-z0-9.\-:\[\]]{1,255}")
MAX_DRAWN = 64
"""Pixels a side of the largest picture that is worth drawing by hand."""

MAX_LABELS = 12
"""Labels told in a table; the document has all."""

INVERT = '<label><input type="checkbox" data-part="invert"> dark on light</label>'

WRAP = '<pre class="wrap">'
PYTHON_KEY = ', {"Authorization": "Bearer KEY"}'
PYTHON = """import json
from urllib.request import Request, urlopen

request = open("request.json", "rb").read()
answer = urlopen(Request("{address}", request{headers}))
for output in json.load(answer)["outputs"]:
    print(output["name"], output["data"])
"""


class Manual:
    """The document and the pages, made anew only when what serves has changed."""

    def __init__(self, plane: DataPlane, version: str, keys: bool = False) -> None:
        self._plane = plane
        self._version = version
        self._keys = keys
        self._known: tuple[tuple[str, str, bool, str], ...] | None = None
        self._made: dict[str, bytes] = {}

    def openapi(self) -> bytes:
        """The OpenAPI document as JSON."""
        served = self._current()
        if "" not in self._made:
            told = openapi.document(served, self._version, self._keys)
            self._made[""] = orjson.dumps(told)
        return self._made[""]

    def page(self, host: str, scheme: str = "http", model: str | None = None) -> bytes:
        """The page of all models, or of one, for a browser that calls this server `host`.

        Raises `NotFound`.
        """
        served = [one for one in self._current() if one.default]
        if model is not None:
            served = [one for one in served if one.name == model]
            if not served:
                raise NotFound(f"no model named {model[:80]!r} answers here; /docs lists them")
        here = f"{scheme}://{host}" if HOST.fullmatch(host) else f"{scheme}://127.0.0.1:8000"
        key = f"{model} {here}"
        if key not in self._made:
            if len(self._made) > 100:  # anybody may call this server by any name
                self._made.clear()
            self._made[key] = _page(served, here, self._keys, alone=model is not None)
        return self._made[key]

    def _current(self) -> list[Served]:
        """What serves, and nothing kept of what served before."""
        served = self._plane.served()
        known = tuple((s.name, s.version, s.default, s.model.bundle.digest) for s in served)
        if known != self._known:
            self._known = known
            self._made.clear()
        return served


@cache
def policy() -> str:
    """The page's Content-Security-Policy."""
    script, style = (
        "sha256-" + base64.b64encode(hashlib.sha256(_file(name).encode()).digest()).decode()
        for name in ("docs.js", "docs.css")
    )
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src data:; "
        "connect-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@cache
def _file(name: str) -> str:
    return (PAGES / name).read_text("utf-8")


def _page(served: list[Served], here: str, keys: bool, alone: bool) -> bytes:
    whole = alone or len(served) == 1
    body = [_model(one, here, keys) for one in served] if whole else [_list(served)]
    key = (
        '<p class="row"><label for="key">API key for trying</label>'
        '<input id="key" type="password" autocomplete="off"></p>'
    )
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(served[0].name) if alone else 'Models on this server'}</title>"
        f"<style>{_file('docs.css')}</style></head><body>\n"
        + ('<p><a href="/docs">All models</a></p>' if alone else "")
        + "<h1>Models on this server</h1>\n"
        f"<p>They answer over the Open Inference Protocol V2 at <code>{escape(here)}</code>. "
        'For programs: <a href="/openapi.json">openapi.json</a>.</p>\n'
        + (key if keys and whole else "")
        + ("".join(body) if served else "<p>No model answers yet.</p>")
        + _errors()
        + f"\n<script>{_file('docs.js')}</script></body></html>\n"
    ).encode()


def _list(served: list[Served]) -> str:
    rows = "".join(
        f'<tr><td><a href="/docs/{one.name}">{escape(one.name)}</a><br>'
        f"{escape(one.model.manifest.task)}, version {one.version}</td>"
        f"<td>{_told(one.model.manifest.inputs)}</td><td>{_told(one.model.manifest.outputs)}</td>"
        "</tr>"
        for one in served
    )
    return (
        '<div class="wide"><table><thead><tr><th>model</th>'
        f"<th>takes</th><th>answers</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _model(one: Served, here: str, keys: bool) -> str:
    manifest, path = one.model.manifest, f"/v2/models/{one.name}"
    shown = openapi.example(one.model, one.name, one.version)
    files = openapi.reads_files(one.model) is not None
    links = f'<a href="{path}">Metadata</a>, <a href="{path}/config">configuration</a>'
    more = "" if keys else links  # which could not send one
    bearer = PYTHON_KEY if keys else ""
    lock = " \\\n  -H 'Authorization: Bearer KEY'" if keys else ""
    parts = [
        f"<section><h2>{escape(one.name)}</h2>"
        f'<p class="facts">{escape(manifest.task)}, version {one.version}, bundle '
        f"<code>{one.model.bundle.digest[:12]}</code>, at most {one.rows} rows a request. "
        f"{more}</p>",
        _tensors("Takes", manifest.inputs),
        _tensors("Answers", manifest.outputs),
    ]
    if files:
        parts.append(
            "<h3>Ask with a file</h3>"
            + WRAP
            + escape(
                f"curl {here}{path}/predict{lock} --data-binary @{prediction.example(manifest)}"
            )
            + "</pre>"
            + _file_shown(one, shown)
        )
    if shown:
        request = orjson.dumps(shown.request).decode()
        parts.append(
            "<h3>Ask with tensors</h3>"
            + WRAP
            + escape(f"curl {here}{path}/infer{lock} --data-binary @request.json")
            + "</pre>"
            + "<details><summary>The same from Python</summary><pre>"
            + escape(PYTHON.format(address=f"{here}{path}/infer", headers=bearer))
            + "</pre></details><details><summary>A real <code>request.json</code>, and the answer proven "
            f'for it</summary><pre class="wrap">{escape(request)}</pre>'
            f'<pre class="wrap">{escape(orjson.dumps(shown.answer).decode())}</pre></details>'
        )
    parts.append(_trial(one, shown, files))
    return "".join(parts) + "</section>"


def _file_shown(one: Served, shown: openapi.Example | None) -> str:
    """The file that the command sends, where it is a row of a table."""
    row = shown and prediction.row_of_table(one.model.manifest, shown.inputs)
    if not row:
        return ""
    name = escape(prediction.example(one.model.manifest))
    return (
        f"<details><summary>A real <code>{name}</code></summary>{WRAP}{escape(row)}</pre></details>"
    )


def _trial(one: Served, shown: openapi.Example | None, files: bool) -> str:
    """The form, hidden until the script that works it runs."""
    if not files and not shown:
        return ""
    parts = [f'<h3>Try it</h3><noscript><p>Trying needs JavaScript; the commands above do not.</p>'
             f'</noscript><div class="try" hidden data-path="/v2/models/{one.name}">']  # fmt: skip
    decoder = one.model.manifest.inputs[0].decoder
    if files and isinstance(decoder, ImageDecoder):
        drawn = decoder.channels == 1 and max(decoder.height, decoder.width) <= MAX_DRAWN
        if shown:
            picture = _picture(next(iter(shown.inputs.values()))[0])
            parts.append(
                f'<div class="row"><img class="sample" data-part="sample" alt="a row it was proven '
                f'with" src="{picture}"><button class="main" data-part="sampled">Ask about this '
                "one</button></div>"
            )
        if drawn:
            parts.append(
                '<p>Or draw in white:</p><div class="row">'
                '<canvas data-part="canvas" width="280" height="280" '
                'aria-label="a sheet to draw on"></canvas>'
                '<button class="main" data-part="drawn">'
                'Ask about my drawing</button><button data-part="clear">Clear</button></div>'
            )
    if files:
        parts.append(
            '<div class="row"><label>A file <input type="file" data-part="file"></label>'
            + (INVERT if isinstance(decoder, ImageDecoder) else "")
            + '<button data-part="send">Ask about the file</button></div>'
        )
    if shown:
        parts.append(
            f"<details{'' if files else ' open'}><summary>A request as JSON</summary>"
            f'<textarea data-part="request" spellcheck="false" aria-label="request">'
            f"{escape(orjson.dumps(shown.request).decode())}</textarea>"
            '<div class="row"><button data-part="ask">Send</button></div></details>'
        )
    return "".join(parts) + '<div data-part="answer" aria-live="polite"></div></div>'


def _picture(row: np.ndarray) -> str:
    """A row of pixels `[height, width, channels]` as an address of itself."""
    from PIL import Image  # only where there is a picture to draw

    buffer = io.BytesIO()
    Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _tensors(title: str, tensors: tuple[Tensor, ...]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(tensor.name)}</code></td>"
        f"<td>{BY_NUMPY[tensor.dtype].protocol} {openapi.shape(tensor)}</td>"
        f"<td>{_meaning(tensor)}</td></tr>"
        for tensor in tensors
    )
    return (
        f'<h3>{title}</h3><div class="wide"><table><thead><tr><th>tensor</th><th>type and shape'
        f"</th><th>meaning</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _meaning(tensor: Tensor) -> str:
    told = escape(getattr(tensor, "units", ""))
    labels = getattr(tensor, "labels", None)
    if labels:
        more = f" and {len(labels) - MAX_LABELS} more" if len(labels) > MAX_LABELS else ""
        told += ", for each of " + ", ".join(escape(label) for label in labels[:MAX_LABELS]) + more
    return told


def _told(tensors: tuple[Tensor, ...]) -> str:
    return "<br>".join(
        f"<code>{escape(t.name)}</code> {BY_NUMPY[t.dtype].protocol} {openapi.shape(t)}"
        for t in tensors
    )


def _errors() -> str:
    rows = "".join(
        f"<tr><td>{status}</td><td>{happened}</td><td>{helps}</td></tr>"
        for status, (happened, helps) in openapi.ERRORS.items()
    )
    return (
        '<h2>Errors</h2><p>Every failure is <code>{"error": "..."}</code>, and the text says what '
        'was expected and what came.</p><div class="wide"><table><thead><tr><th>status</th>'
        f"<th>what happened</th><th>what helps</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
