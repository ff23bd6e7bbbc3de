"""Images in a classify request: base64 in JSON, or files in a form. service/images says what is in them."""

import re
from base64 import b64encode
from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Any, NamedTuple, overload

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers as RawHeaders
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive

from service.api.body import SMALL_DOCUMENT, Headers, body_chunks, invalid
from service.bounded_json import DoesNotFit, Model, TooManyValues, first_errors, parse
from service.errors import InvalidRequest, MalformedForm, TooLarge, UnsupportedMediaType
from service.server.intake import Intake

FILE_FIELDS = ("images", "image")
MAX_FIELDS = 8  # there are four
MAX_FIELD_BYTES = 64 * 1024
FORM = "multipart/form-data"
UNNAMED = "without-a-filename"
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
_BOUNDARY = re.compile(rb"[\x20-\x7e]{0,69}[\x21-\x7e]")  # RFC 2046's length; of letters, more than it has


class EncodedImage(BaseModel):
    """One image: PNG, JPEG, WebP, GIF (its first frame) or BMP, in base64; a data URL is fine too."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: Annotated[str, StringConstraints(min_length=1)]


def _kind_of_inputs(value: object) -> str | None:
    return "one_image" if isinstance(value, dict) else "more_images" if isinstance(value, list) else None


ImageInputs = Annotated[
    Annotated[EncodedImage, Tag("one_image")]
    | Annotated[list[EncodedImage], Field(min_length=1, fail_fast=True), Tag("more_images")],
    Discriminator(
        _kind_of_inputs,
        custom_error_type="inputs_type",
        custom_error_message="must be one image, as an object with its base64 in `image`, or a list of them",
    ),
]


class Form(NamedTuple):
    """A form's files in their order, and its other fields by name."""

    files: list[bytes]
    fields: dict[str, str]


class Base64Files(Sequence[dict[str, str]]):
    """Files as they travel: each is put into base64 when it is asked for, so that only a deferred one is."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, position: int) -> dict[str, str]: ...
    @overload
    def __getitem__(self, position: slice) -> "Base64Files": ...
    def __getitem__(self, position: int | slice) -> "dict[str, str] | Base64Files":
        if isinstance(position, slice):
            return Base64Files(self._files[position])
        return {"image": b64encode(self._files[position]).decode("ascii")}


def is_form(headers: Headers) -> bool:
    """Whether the body says that it is a form with files."""
    return headers.get(b"content-type", b"")[: len(FORM)].lower() == FORM.encode()


class _Parser(MultiPartParser):
    # Never into a temporary file: all of them together fit into a body, and a disk may be full or read-only.
    spool_max_size = 0
    ended = False

    def on_headers_finished(self) -> None:
        """A file needs no filename: curl's `-F images=<FILE` sends none, others send `filename*` (RFC 5987) alone."""
        _, options = parse_options_header(self._current_part.content_disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if name in FILE_FIELDS and b"filename" not in options:
            self._current_part.content_disposition = b'form-data; name="%b"; filename="%b"' % (
                name.encode(),
                UNNAMED.encode(),
            )
        super().on_headers_finished()

    def on_end(self) -> None:
        self.ended = True


async def read_form(headers: Headers, receive: Receive, max_bytes: int, max_items: int, intake: Intake) -> Form:
    """The form, whole and in memory. Raises as read_body does, MalformedForm (no form) or InvalidRequest."""
    async with aclosing(body_chunks(headers, receive, max_bytes, intake)) as chunks:
        parser = _Parser(
            _content_type(headers),
            chunks,
            max_files=max_items,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        try:
            parsed = await parser.parse()
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise TooLarge(f"more than {max_items:,} files, the most in one request: send several") from None
            raise MalformedForm(f"the form cannot be read: {error.message.rstrip('.')}") from None
    if not parser.ended:  # else a part cut short would be left out without a word
        raise MalformedForm("the form cannot be read: its last boundary is missing")
    form = Form([], {})
    for name, value in parsed.multi_items():
        if isinstance(value, UploadFile):
            form.files.append(_file(name, value))
        else:
            _add_field(form, name, value)
    _check_size(form.files, max_bytes)
    return form


def _content_type(headers: Headers) -> RawHeaders:
    """What the parser is told: the boundary alone.

    It would read names and values by any codec of Python's that the header names: some raise, some take the square of
    the length.
    """
    _, options = parse_options_header(headers[b"content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in CHARSETS:
        raise UnsupportedMediaType(f"the form's charset is {charset[:20]!r}: send its texts in utf-8")
    boundary = options.get(b"boundary")
    if boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise MalformedForm("the form's content-type must name its boundary, of 1 to 70 ASCII characters")
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    return RawHeaders(raw=[(b"content-type", b'%b; boundary="%b"' % (FORM.encode(), quoted))])


def form_parameters(model: type[Model], fields: dict[str, str]) -> Model:
    """A form's fields as that document: one by one, or all in one field of JSON. Raises InvalidRequest."""
    try:
        if "parameters" not in fields:
            return model.model_validate_strings(fields)
        if len(fields) > 1:
            raise InvalidRequest("send `parameters`, or its fields by themselves, not both")
        return parse(model, fields["parameters"].encode("utf-8", "surrogateescape"), SMALL_DOCUMENT)
    except TooManyValues:
        raise InvalidRequest(f"parameters: more than {SMALL_DOCUMENT} values; there are three") from None
    except (DoesNotFit, ValidationError) as error:
        details = error.errors if isinstance(error, DoesNotFit) else first_errors(error)
        raise invalid([{**entry, "loc": ("parameters", *entry["loc"])} for entry in details]) from None


def _file(name: str, upload: UploadFile) -> bytes:
    if name not in FILE_FIELDS:
        raise InvalidRequest(f"{name[:40]!r} holds a file: files go under `images`")
    with upload.file as file:
        content = file.read()
    if upload.filename == UNNAMED and _is_text(content):
        raise InvalidRequest(f"{name}: must be a file, not text; with curl: -F {name}=@FILE")
    return content


def _is_text(content: bytes) -> bool:
    """What somebody typed, and no image: no format that we read does without bytes that no text has."""
    try:
        return "\0" not in content[:MAX_FIELD_BYTES].decode("utf-8")
    except UnicodeDecodeError:
        return False


def _add_field(form: Form, name: str, value: str) -> None:
    if name in form.fields:
        raise InvalidRequest(f"{name[:40]!r} is there twice")
    form.fields[name] = value


def _check_size(files: Sequence[bytes], max_bytes: int) -> None:
    """A large model takes no longer body than we do, and images travel there in base64."""
    if not files:
        raise InvalidRequest("the form holds no file: images go under `images`; with curl: -F images=@FILE")
    size = sum(4 * ((len(file) + 2) // 3) + len('{"image":""},') for file in files)
    if size > max_bytes:
        raise TooLarge(f"the images are {size:,} bytes of base64, and {max_bytes:,} is the most: send fewer")


def form_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """The form for the OpenAPI document. parameters: the schema of their fields by name."""
    image = {"type": "string", "format": "binary"}
    return {
        "type": "object",
        "required": ["images"],
        "additionalProperties": False,
        "properties": {
            "images": {"type": "array", "items": image, "minItems": 1},
            **parameters,
            "parameters": {"type": "string", "description": "the same as one field of JSON"},
        },
    }
