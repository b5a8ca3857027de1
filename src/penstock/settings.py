"""One validated configuration: from arguments, `PENSTOCK_…` environment variables, or a TOML file.

The rule here: frozen, checked when made, nothing accepted and ignored. A bad value names its field and what is allowed, and shows the value only
where it can't be a secret. Nothing is read at import time.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from penstock.core.secret import Secret
from penstock.guards.admit import AdmitOptions
from penstock.guards.breaker import BreakerOptions
from penstock.guards.retry import RetryOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.admission.keys import Balance
    from penstock.admission.limits import Limits

__all__ = ["Settings", "SettingsFields", "check_base_url"]

# Field names whose text values are choices or names, and may therefore be shown.
_SHOWN = frozenset({"transport", "balance", "model"})


def _as_secrets(value: object) -> object:
    """Take keys as a comma list, a sequence of text, or of `Secret`."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list | tuple):
        raise ValueError("must be API keys: a list of text, or one text with commas")  # noqa: TRY004 - pydantic turns ValueError into its own
    secrets = []
    for item in value:
        if isinstance(item, Secret):
            secrets.append(item)
        elif isinstance(item, str) and item.strip().isascii() and item.strip().isprintable() and item.strip():
            secrets.append(Secret(item.strip()))
        else:
            raise ValueError("must be API keys, each a text of printable ASCII characters that is not empty")
    if len(set(secrets)) < len(secrets):
        raise ValueError("must not hold the same API key twice")
    return tuple(secrets)


def check_base_url(url: str, *, allow_http: bool) -> str:
    """Return `url` if keys may be sent to it.

    Raises:
        ValueError: It is no http(s) URL, or plain http to another machine without `allow_http`.

    Example:
        >>> check_base_url("http://127.0.0.1:8080", allow_http=False)
        'http://127.0.0.1:8080'
    """
    import httpx2  # noqa: PLC0415 - not needed where there is no base_url

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise ValueError("base_url must be an http(s) URL") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError("base_url must be an http(s) URL")
    if parsed.scheme == "http" and not allow_http and not _is_loopback(parsed.host):
        raise ValueError("base_url is plain http to another machine, which would show API keys on the network; use https, or set allow_http=True")
    return url


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(AdmitOptions, BaseSettings):
    """Everything a `Client` can be told. Each field can also be given to `Client` by name, or as `PENSTOCK_…` in the environment.

    Args:
        api_keys: API keys; text with commas works. Empty: `ANTHROPIC_API_KEY` is looked at when the client is entered.
        base_url: Of the API; the SDK's default (`ANTHROPIC_BASE_URL`, else the public API) if not given. Plain http only to this machine.
        allow_http: Allow plain http to other machines.
        transport: `"aiohttp"` (less CPU) or `"httpx2"`.
        timeout_s: Seconds for each attempt; unset by default, because any value switches off the SDK's guard against long requests.
        deadline_s: Seconds for each call, waits and attempts together; `None` for no bound. Items of a fan-out have none.
        close_timeout_s: Seconds that calls under way may take when the client is closed, before they are cancelled.
        model: For `fan_out` and `map`, where none is given.
        max_tokens: For `fan_out` and `map`, where none is given; 1 or more.
        retry: How often and when failed attempts are repeated.
        breaker: When a failing service is left alone.
        log: Whether to log one line for each call to the logger `penstock`.

    Raises:
        pydantic.ValidationError: A bad or unknown setting; it is also a `ValueError`.

    Example:
        >>> Settings(api_keys=["sk-example"], concurrency=8).api_keys
        (Secret('key-f2d4b279'),)
    """

    model_config = SettingsConfigDict(
        env_prefix="PENSTOCK_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    api_keys: Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_as_secrets)] = ()
    base_url: str | None = None
    allow_http: bool = False
    transport: Literal["aiohttp", "httpx2"] = "aiohttp"
    timeout_s: float | None = Field(default=None, gt=0)
    deadline_s: float | None = Field(default=600.0, gt=0)
    close_timeout_s: float = Field(default=10.0, ge=0)
    model: str | None = Field(default=None, min_length=1)
    max_tokens: int = Field(default=8192, ge=1)
    retry: RetryOptions = RetryOptions()
    breaker: BreakerOptions = BreakerOptions()
    log: bool = True

    def __init__(self, **fields: Any) -> None:  # noqa: ANN401 - pydantic checks them
        failed: ValidationError | None = None
        try:
            super().__init__(**fields)
        except ValidationError as error:
            failed = error
        if failed is not None:
            # Raised out here, so that the original, which holds the input, is not its context.
            raise _without_secrets(failed)

    @model_validator(mode="after")
    def _check_url(self) -> Settings:
        if self.base_url is not None:
            check_base_url(self.base_url, allow_http=self.allow_http)
        return self

    @property
    def admit(self) -> AdmitOptions:
        """The fields that concern admission, on their own."""
        return AdmitOptions.model_validate({name: getattr(self, name) for name in AdmitOptions.model_fields})

    @classmethod
    def from_file(cls, path: str | Path) -> Settings:
        """Read a TOML file; environment variables win over it.

        Args:
            path: Of the file.

        Raises:
            FileNotFoundError: There is none.
            pydantic.ValidationError: A bad or unknown setting.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no settings file at {path}")

        class FromFile(cls):  # type: ignore[valid-type, misc]
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_others: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

        return cls(**dict(FromFile()))


def _without_secrets(error: ValidationError) -> ValidationError:
    """Return the error with every input hidden that may hold a secret: keys, URLs, and whatever was given under an unknown name."""
    lines = []
    for line in error.errors(include_url=False):
        shown = _may_show(line["type"], line["loc"], line["input"])
        message = line["msg"].replace("{", "{{").replace("}", "}}")
        lines.append(
            InitErrorDetails(
                type=PydanticCustomError(line["type"], message),  # type: ignore[arg-type]
                loc=line["loc"],
                input=line["input"] if shown else "***",
            )
        )
    return ValidationError.from_exception_data(error.title, lines)


def _may_show(kind: str, place: tuple[int | str, ...], value: object) -> bool:
    if kind == "extra_forbidden" or not place or place[0] in {"api_keys", "base_url"}:
        return False
    return value is None or isinstance(value, bool | int | float) or place[0] in _SHOWN


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings` as keywords; a test keeps both the same."""

    api_keys: Sequence[str | Secret] | str
    base_url: str | None
    allow_http: bool
    transport: Literal["aiohttp", "httpx2"]
    timeout_s: float | None
    deadline_s: float | None
    close_timeout_s: float
    model: str | None
    max_tokens: int
    limits: Limits | dict[str, Limits] | None
    concurrency: int
    max_queued: int | None
    queue_timeout_s: float | None
    balance: Balance
    retry: RetryOptions
    breaker: BreakerOptions
    log: bool
