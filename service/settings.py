"""Settings: what needs a restart. Read once, from flags and GATEKEEPER_ variables; every number bounded.

What an operator may change while the service runs is the policy (policy.py), not a setting.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AnyHttpUrl,
    Field,
    RedisDsn,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.variables import Variables

PACKAGED_BUNDLES = Path(__file__).resolve().parent.parent / "models" / "bundles"
_HTTP_URL = TypeAdapter(AnyHttpUrl)
# What people copy from a curl or a browser.
_ROUTE = re.compile(
    r"(?:/v1(?:/classify|/models|/chat/completions)?|/livez|/readyz|/metrics|/docs|/console|/admin(?:/v1(?:/.*)?)?)/?$"
)


def check_admin_token(token: str) -> None:
    """Raises PydanticCustomError for one that nobody can send in a header, or that is too short."""
    if len(token.strip()) < 8:
        raise PydanticCustomError("admin_token", "must have at least 8 characters; unset it to have no admin API")
    _refuse_quotes(token)
    if not re.fullmatch(r"[!-~][ -~]*[!-~]", token):
        fault = "must be visible ASCII characters, without a blank or a line break at its ends: no header carries those"
        raise PydanticCustomError("admin_token", fault)


def _refuse_quotes(secret: str) -> None:
    """Of a secret nothing is taken away: who meant the quotes would be as surprised as who did not."""
    if len(secret) >= 2 and secret[0] == secret[-1] and secret[0] in "\"'":
        raise PydanticCustomError("quotes", "stands in quotes, which would be part of it: write it without")


class _CommonSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GATEKEEPER_", extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  ours stands in its place
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  none is read
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  none is read
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before variables, and nothing else."""
        return init_settings, Variables(settings_cls)

    max_items: int = Field(256, ge=1, le=10_000, description="items in one request; more: 413")
    max_text_chars: int = Field(8_192, ge=1, le=1_000_000, description="a longer text is cut before tokenising")
    max_body_bytes: int | None = Field(
        None, ge=1_024, le=256 * 1024 * 1024, description="of one request; default: 4 MiB for texts, 16 MiB for images"
    )
    max_receive_bytes: int | None = Field(
        None,
        ge=1_024,
        le=2**40,
        description="of all bodies that are arriving; above it: 429. At least max_body_bytes; default: 64 MiB for "
        "texts, 32 MiB for images",
    )
    max_image_pixels: int = Field(
        16_000_000, ge=1, le=64_000_000, description="a larger image: 413, without unpacking it"
    )
    max_image_ms: float = Field(
        1_000.0, gt=0, le=3_600_000, description="an image whose header says that unpacking takes longer: 413"
    )
    max_decode_ms: float = Field(
        10_000.0, gt=0, le=3_600_000, description="the same for all images of a request. At least max_image_ms"
    )
    decode_threads: int = Field(1, ge=1, le=64, description="images unpacked at once")
    max_decode_queue_bytes: int = Field(
        128 * 1024 * 1024,
        ge=1_024,
        le=2**40,
        description="of images that wait to be unpacked; above it: 429. At least max_body_bytes",
    )
    max_queue_items: int = Field(
        2_048, ge=1, le=1_000_000, description="items that wait for the model; above it: 429. At least max_items"
    )
    max_batch_items: int = Field(32, ge=1, le=4_096, description="items in one batch of the model")
    max_batch_ms: float = Field(100.0, gt=0, le=60_000, description="batches of a slow model are kept about this short")
    max_batch_tokens: int = Field(
        16_384, ge=1, le=10_000_000, description="in one batch: the tokens of its longest item times its items"
    )
    max_wait_ms: float = Field(0.0, ge=0, le=1_000, description="how long a free model waits for a batch to fill")
    max_queue_wait_ms: float = Field(
        500.0, gt=0, le=3_600_000, description="a request that would wait longer for the model: 429"
    )
    runner: Literal["auto", "inline", "thread"] = Field(
        "auto", description="where the model runs: on the event loop or in a thread; auto measures at the start"
    )
    model_timeout_s: float = Field(60.0, gt=0, le=3_600, description="a batch that takes longer turns /livez red")
    torch_threads: int = Field(1, ge=1, le=256, description="threads that compute one batch")
    drain_s: float = Field(2.0, ge=0, le=600, description="after SIGTERM: not ready, but still accepting")
    shutdown_timeout_s: float = Field(
        30.0, gt=0, le=600, description="then requests in flight have this long to finish"
    )
    max_connections: int = Field(
        4_096, ge=16, le=1_000_000, description="at once; above it the idlest one is closed, or a new one gets 503"
    )
    max_header_bytes: int = Field(32 * 1024, ge=1_024, le=1024 * 1024, description="of one request; more: 431")
    client_timeout_s: float = Field(
        20.0, gt=0, le=3_600, description="for a client to send a whole request, or to read on; then 408"
    )
    connection_guard: Literal["on", "off"] = Field(
        "on",
        description="off, only behind a proxy that bounds connections, headers and slow clients: max_connections, "
        "max_header_bytes and client_timeout_s do nothing then",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names in the header `host` that the service answers to, separated by commas; *: any. Default: "
        "any; on a loopback address only addresses and names without a dot",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is logged")
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else json")
    access_log: bool = Field(False, description="one line for each request")

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names_apart(cls, value: object) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise PydanticCustomError("allowed_hosts", "must be names, separated by commas")
        names = tuple(name.strip().lower() for name in names if name.strip())
        if not all(re.fullmatch(r"\*|[a-z0-9._:-]+", name) for name in names):
            raise PydanticCustomError("allowed_hosts", "must be names without scheme and port, or * for any")
        return names


class EdgeSettings(_CommonSettings):
    """Of `gatekeeper serve`."""

    bundle: Path = Field(PACKAGED_BUNDLES / "clinc150-small", description="directory of the small model")
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0: any free one")
    remote_wire: Literal["gatekeeper", "openai"] = Field(
        "gatekeeper", description="what the large model speaks; openai: it is an LLM behind /v1/chat/completions"
    )
    remote_url: Annotated[tuple[AnyHttpUrl, ...], NoDecode] = Field(
        (AnyHttpUrl("http://127.0.0.1:8001"),),
        description="the large model, which may be another edge; several, separated by commas, share the calls",
    )
    remote_model: str | None = Field(None, min_length=1, description="openai: the LLM's name at its server")
    remote_descriptions: Path | None = Field(
        None, description="openai: a JSON file of labels to descriptions, one line each, which the LLM is shown"
    )
    remote_prompt: Path | None = Field(
        None, description="openai: a text file in the place of the question, with {labels} and {text}"
    )
    remote_price_prompt: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="openai: of a million prompt tokens, for the metric of the cost"
    )
    remote_price_completion: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="openai: of a million completion tokens"
    )
    remote_fan_out: int = Field(8, ge=1, le=1_000, description="openai: calls at once for the items of one request")
    remote_key: SecretStr | None = Field(
        None, description="API key for the large models: sent to each as a bearer token"
    )
    remote_ca_file: Path | None = Field(
        None, description="PEM file of a private authority, trusted for https in place of the system's roots"
    )
    remote_max_concurrency: int = Field(64, ge=1, le=10_000, description="calls at once to each large model")
    remote_max_items: int = Field(
        32, ge=1, le=10_000, description="items of several requests that travel in one call; 1: each on its own"
    )
    remote_connect_timeout_s: float = Field(1.0, gt=0, le=60, description="to connect to a large model")
    remote_max_response_bytes: int = Field(
        8 * 1024 * 1024, ge=1_024, le=256 * 1024 * 1024, description="of one answer of a large model"
    )
    remote_foreign_labels: Literal["refuse", "allow"] = Field(
        "refuse", description="labels of the large model that the bundle does not have; allow: passed on to clients"
    )
    breaker_failures: int = Field(
        5, ge=1, le=1_000, description="failed calls in a row that open the breaker of a large model"
    )
    breaker_open_s: float = Field(2.0, gt=0, le=600, description="how long no call is made then; one probe follows")
    admin_token: SecretStr | None = Field(
        None, description="without it the admin routes answer 404; at least 8 characters"
    )
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65_535,
        description="/admin, /metrics and /console on a listener of their own, which answers /v1 too",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="name:sha256[:scope+scope[:limit]], separated by commas, as `gatekeeper keys new` prints it; "
        "default: anybody may call",
    )
    api_keys_file: Path | None = Field(
        None, description="the keys as a JSON or TOML file, followed while the service runs"
    )
    policy_path: Path = Field(Path(".gatekeeper/policy.db"), description="SQLite file of the policy, without Redis")
    policy_poll_s: float = Field(1.0, gt=0, le=60, description="how often an edge looks for changes of others")
    redis_url: RedisDsn | None = Field(
        None, validation_alias="REDIS_URL", description="where several edges share the policy and the limits of keys"
    )
    redis_timeout_s: float = Field(1.0, gt=0, le=60, description="for one answer of Redis")

    @field_validator("admin_token")
    @classmethod
    def _token_can_be_sent(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            check_admin_token(token.get_secret_value())
        return token

    @field_validator("admin_port")
    @classmethod
    def _ports_differ(cls, admin_port: int | None, others: ValidationInfo) -> int | None:
        if admin_port and admin_port == others.data.get("port"):
            raise PydanticCustomError("admin_port", "must be another port than the edge's own")
        return admin_port

    @field_validator("remote_url", mode="before")
    @classmethod
    def _urls_apart(cls, value: object, others: ValidationInfo) -> tuple[AnyHttpUrl, ...]:
        texts = [text.strip() for text in value.split(",")] if isinstance(value, str) else value
        try:
            urls = tuple(_HTTP_URL.validate_python(text) for text in texts)  # type: ignore[attr-defined]  # else TypeError
        except (TypeError, ValidationError):
            raise PydanticCustomError("remote_url", "must be an http or https URL, or several with commas") from None
        if not urls or any(url.username or url.password or url.query or url.fragment for url in urls):
            raise PydanticCustomError("remote_url", "must be scheme, host, port and path alone")
        for url in urls:
            route = _ROUTE.search(url.path or "")
            if route and not (others.data.get("remote_wire") == "openai" and route[0].rstrip("/") == "/v1"):
                right = str(url).removesuffix("/").removesuffix(route[0].removesuffix("/"))
                fault = f"ends in {route[0]}, and the edge adds its routes itself: give {right}"
                raise PydanticCustomError("remote_url", fault)
        if len(set(urls)) < len(urls):
            raise PydanticCustomError("remote_url", "names a URL twice")
        return urls

    @field_validator("remote_key")
    @classmethod
    def _key_fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
                raise PydanticCustomError(
                    "remote_key", "must be visible ASCII characters, no spaces; unset it for none"
                )
            _refuse_quotes(key.get_secret_value())
        return key


class LargeSettings(_CommonSettings):
    """Of `gatekeeper serve-large`."""

    bundle: Path = Field(
        PACKAGED_BUNDLES / "clinc150-large",
        validation_alias="GATEKEEPER_LARGE_BUNDLE",
        description="directory of the large model",
    )
    host: str = Field(
        "127.0.0.1", min_length=1, validation_alias="GATEKEEPER_LARGE_HOST", description="address to listen on"
    )
    port: int = Field(
        8001,
        ge=0,
        le=65_535,
        validation_alias="GATEKEEPER_LARGE_PORT",
        description="port to listen on; 0: any free one",
    )
    # An edge has time for a large model; the deadline that it sends along ends the waiting sooner.
    max_queue_wait_ms: float = Field(
        5_000.0, gt=0, le=3_600_000, description="a request that would wait longer for the model: 429"
    )
    api_keys: SecretStr | None = Field(
        None,
        validation_alias="GATEKEEPER_LARGE_API_KEYS",
        description="the same for this service; default: anybody may call",
    )
    api_keys_file: Path | None = Field(
        None,
        validation_alias="GATEKEEPER_LARGE_API_KEYS_FILE",
        description="the keys as a JSON or TOML file, followed while the service runs",
    )
    redis_url: RedisDsn | None = Field(
        None, validation_alias="REDIS_URL", description="where several services count the limits of keys together"
    )


def variable_of(field: str) -> str:
    """The variable of a setting, by its field's name or alias."""
    return field if field.isupper() else f"GATEKEEPER_{field.upper()}"


def setting_names() -> set[str]:
    """The variables of all settings."""
    fields = [*EdgeSettings.model_fields.items(), *LargeSettings.model_fields.items()]
    return {variable_of(str(field.validation_alias or name)) for name, field in fields}


def allowed_hosts(settings: EdgeSettings | LargeSettings) -> tuple[str, ...] | None:
    """For Sites: those that are set, else any name, or None on a loopback address."""
    if settings.allowed_hosts:
        return settings.allowed_hosts
    host = settings.host
    return None if host in ("localhost", "::1") or host.startswith("127.") else ("*",)
