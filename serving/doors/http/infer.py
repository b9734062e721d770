"""Requests for a model's answer: tensors in, tensors out; or a file in, its label out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import parse_qsl
from weakref import WeakKeyDictionary, WeakMethod

from serving import errors
from serving.codecs import codec_json, json_templates
from serving.codecs.long_lists import LONG_BYTES
from serving.codecs.tensor_head import Check
from serving.dataplane import DataPlane
from serving.doors.http.exchange import BINARY, JSON, Reply, Request, Response
from serving.doors.http.status import failed
from serving.doors.offload import Apart, Cancellable, LongReader
from serving.inference.contract import Contract
from serving.observability.call import Call
from serving.protocol import InferRequest, InferResponse

HEADER_LENGTH = "inference-header-content-length"

# curl sends the form type with `--data-binary` unless told otherwise; what it sends is no form.
CURL_DEFAULT = "application/x-www-form-urlencoded"
INFER_TYPES = ("", JSON, BINARY, "text/json", CURL_DEFAULT)
FILE_TYPES = ("", BINARY, CURL_DEFAULT)

TEXT_BYTES = 32 << 10
"""Bytes of a body that may hold texts and is read at once: up to 8 thousand, in a millisecond or two."""

UNWRITTEN_BYTES = 256 << 20
"""Bytes of answers that may wait to be written as JSON; one is taken whatever its size."""

TRUE, FALSE = ("true", "1", "yes", ""), ("false", "0", "no")

Done = Callable[[InferRequest, InferResponse | errors.ServingError], None]


class Inference:
    """What asks a model. `json_bytes`: JSON of one body that is read, at most."""

    def __init__(self, plane: DataPlane, json_bytes: int) -> None:
        self._plane = plane
        self._json_bytes = json_bytes
        self._long = LongReader("json")
        self._writers = ThreadPoolExecutor(1, "answers")
        self._unwritten = 0
        self._readers: WeakKeyDictionary[Contract, json_templates.Reader] = WeakKeyDictionary()

    def infer(self, name: str, number: str | None, request: Request, reply: Reply) -> Cancellable:
        """Tensors in, tensors out; what comes back calls off an answer that is not there yet."""
        call = (request.outer or request).call = Call()

        def read(contract: Contract) -> InferRequest:
            length = request.headers.get(HEADER_LENGTH, "")
            if codec_json.is_raw(length):
                return codec_json.decode_raw(request.body, self._plane.inputs(name, number))
            try:
                return self._reader(contract).read(request.body, length)
            except errors.InvalidRequest as error:
                if hint := _raw_hint(request):
                    raise errors.InvalidRequest(f"{error}{hint}") from None
                raise

        def done(asked: InferRequest, answer: InferResponse | errors.ServingError) -> None:
            try:
                if isinstance(answer, Exception):
                    raise answer
                if codec_json.is_long_answer(asked, answer):
                    self._tell_apart(asked, answer, reply, call)
                    return
                response = _response(*codec_json.encode(asked, answer))
            except Exception as error:
                call.failed(error)
                response = failed(error)
            reply(response)

        try:
            _check_type(request, INFER_TYPES, f"{JSON} or {BINARY}")
            if len(request.body) > TEXT_BYTES:
                length = request.headers.get(HEADER_LENGTH, "")
                if self._is_long(name, number, len(request.body), length):
                    return self._read_apart(name, number, request, length, done, reply, call)
            return self._plane.submit(name, number, read, done, call)
        except Exception as error:
            call.failed(error)
            raise

    def _is_long(self, name: str, number: str | None, size: int, length: str) -> bool:
        """Whether a body has more JSON, or may have more texts, than is read while others wait."""
        text = codec_json.json_size(size, length)
        if text > LONG_BYTES:
            codec_json.check_json(text, self._json_bytes)
            return True
        return not codec_json.is_raw(length) and self._plane.takes_texts(name, number)

    def _read_apart(
        self,
        name: str,
        number: str | None,
        request: Request,
        length: str,
        done: Done,
        reply: Reply,
        call: Call,
    ) -> Cancellable:
        """Have much JSON or text read in a thread, in which it takes turns with the event loop."""
        check = self._plane.check(name, number, call)

        def then(asked: InferRequest) -> Cancellable:
            return self._plane.submit(name, number, lambda contract: asked, done, call)

        def fail(error: BaseException) -> None:
            if isinstance(error, Exception):
                call.failed(error)
            if hint and isinstance(error, errors.InvalidRequest):
                error = errors.InvalidRequest(f"{error}{hint}")
            reply(failed(error))

        body, hint = request.body, _raw_hint(request)
        return self._long.read(
            lambda: codec_json.decode(body, length, check, self._json_bytes), then, fail
        )

    def _tell_apart(
        self, asked: InferRequest, answer: InferResponse, reply: Reply, call: Call
    ) -> None:
        """Have a long answer written in a thread, in which it takes turns with the event loop."""
        size = sum(tensor.array.nbytes for tensor in answer.outputs)
        if self._unwritten and self._unwritten + size > UNWRITTEN_BYTES:
            raise errors.Overloaded(
                f"answers of {self._unwritten} bytes wait to be written as JSON; ask for this one "
                'in binary: "parameters": {"binary_data_output": true}'
            )

        def fail(error: BaseException) -> None:
            if isinstance(error, Exception):
                call.failed(error)
            reply(failed(error))

        def written(work: object) -> None:
            self._unwritten -= size

        work = asyncio.get_running_loop().run_in_executor(
            self._writers, lambda: _response(*codec_json.encode_long(asked, answer))
        )
        self._unwritten += size
        work.add_done_callback(written)
        Apart(work, reply, fail)

    def _reader(self, contract: Contract) -> json_templates.Reader:
        reader = self._readers.get(contract)
        if reader is None:
            reader = json_templates.Reader(_weakly(contract.check), self._json_bytes)
            self._readers[contract] = reader
        return reader

    async def predict(self, name: str, number: str | None, request: Request) -> Response:
        """A file in, what it shows out."""
        call = (request.outer or request).call = Call()
        try:
            media = self._plane.media(name, number)
            begins = tuple(kind.removesuffix("*") for kind in media)
            _check_type(request, FILE_TYPES, ", ".join((*media, BINARY)), begins)
            invert = _invert(request.query)
            if not request.body:
                raise errors.InvalidRequest("the body: expected a file, got nothing")
            answer = await self._plane.predict(name, number, request.body, invert, call)
        except Exception as error:
            call.failed(error)
            raise
        return Response(HTTPStatus.OK, (codec_json.encode_prediction(answer),))


def _response(parts: Sequence[bytes | memoryview], json_bytes: int) -> Response:
    if json_bytes < 0:
        return Response(200, parts)
    return Response(200, parts, BINARY, (("Inference-Header-Content-Length", str(json_bytes)),))


def _weakly(check: Check) -> Check:
    """The same check, not keeping its contract: a model that was unloaded must go."""
    kept = WeakMethod(check)

    def checked(name: str, datatype: str, shape: Sequence[int]) -> None:
        alive = kept()
        if alive is not None:
            alive(name, datatype, shape)

    return checked


def _raw_hint(request: Request) -> str:
    """What to add to a refusal where raw bytes were sent without the header that says so."""
    if HEADER_LENGTH in request.headers or request.body[:64].lstrip().startswith(b"{"):
        return ""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != BINARY:
        return ""
    return "; for raw bytes send Inference-Header-Content-Length: 0"


def _check_type(
    request: Request, known: tuple[str, ...], expected: str, prefixes: tuple[str, ...] = ()
) -> None:
    sent = request.headers.get("content-type", "")
    if sent in known:
        return
    sent = sent.partition(";")[0].strip().lower()
    if sent not in known and not sent.startswith(prefixes):
        multipart = sent.startswith("multipart/")
        hint = "; send the file itself, as curl --data-binary @FILE does" if multipart else ""
        raise errors.UnsupportedMedia(f"Content-Type: expected {expected}, got {sent[:80]!r}{hint}")


def _invert(query: str) -> bool:
    invert = False
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise errors.InvalidRequest(f"query: {error}") from error
    for key, value in fields:
        if key != "invert" or value.lower() not in TRUE + FALSE:
            raise errors.InvalidRequest(
                "query: expected invert=true (or 1, yes) or invert=false (or 0, no), got "
                f"{key[:80]}={value[:80]}"
            )
        invert = value.lower() in TRUE
    return invert
