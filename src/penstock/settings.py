"""One validated configuration: from arguments, `PENSTOCK_…` environment variables, or a TOML file.

The rule here: frozen, checked when made, nothing accepted and ignored. A bad value names its field and what is allowed,
and shows the value only where it can't be a secret. Nothing is read at import time.
"""

from __future__ import annotations

import difflib
import inspect
import ipaddress
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast, get_args

import anthropic
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from penstock._core.call import MAX_RESPONSE_BYTES
from penstock._core.secret import Secret
from penstock.guards.admit.options import AdmitOptions
from penstock.guards.breaker import BreakerOptions
from penstock.guards.retry import RetryOptions
from penstock.guards.sanitize import SanitizeOptions
from penstock.keys.environment import as_secret

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from penstock.guards.admit.keys import Balance
    from penstock.guards.admit.limits import Limits, QuotaScope

__all__ = ["Settings", "SettingsFields", "check_base_url"]

# Fields whose values may be secrets, or hold one.
_HIDDEN = frozenset({"api_keys", "base_url"})
# No API key is as short as that; a longer text may be one that was given in the wrong place.
_LONGEST_SHOWN = 16
# Names of fields, and of models, are longer.
_LONGEST_NAME = 32
# Settings that the SDK's client calls otherwise.
_OF_THE_SDK = {"api_key": "api_keys", "timeout": "timeout_s", "max_retries": "retry=RetryOptions(max_attempts=…)"}
_PREFIX = "PENSTOCK_"


def _as_secrets(value: object) -> tuple[Secret, ...]:
    """Take keys as a comma list, a sequence of text, or of `Secret`."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        problem = "must be API keys: a list of text, or one text with commas"
        raise ValueError(problem)  # noqa: TRY004 - pydantic makes a validation error of a ValueError only
    secrets = tuple(_as_secret(item) for item in cast("Sequence[object]", value))
    if len(set(secrets)) < len(secrets):
        raise ValueError("must not hold the same API key twice")
    return secrets


def _as_secret(item: object) -> Secret:
    return as_secret(item if isinstance(item, str | Secret) else "")


def _as_sanitize(value: object) -> object:
    """Take a plain yes or no, as text too, for the defaults or nothing."""
    text = str(value).lower() if isinstance(value, bool | int | str) else ""
    if text in {"true", "1", "yes", "on"}:
        return SanitizeOptions()
    return None if text in {"false", "0", "no", "off"} else value


def check_base_url(url: str, *, allow_http: bool) -> str:
    """Return `url` if keys may be sent to it.

    Raises:
        ValueError: It is no http(s) URL, or plain http to another machine without `allow_http`.

    Example:
        >>> check_base_url("http://127.0.0.1:8080", allow_http=False)
        'http://127.0.0.1:8080'
    """
    problem = _problem_of_url(url, allow_http=allow_http)
    if problem is not None:
        # It may be a key, and some tracebacks show local variables.
        del url
        raise ValueError(problem)
    return url


def _problem_of_url(url: str, *, allow_http: bool) -> str | None:
    import httpx2  # noqa: PLC0415 - not needed where there is no base_url

    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "base_url must be an http(s) URL"
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        return "base_url must be an http(s) URL"
    if parsed.userinfo:
        return "base_url must hold no user or password, which would be sent in place of the API key"
    if parsed.scheme == "http" and not allow_http and not _is_loopback(parsed.host):
        return (
            "base_url is plain http to another machine, which would show API keys on the network; "
            "use https, or set allow_http=True"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(AdmitOptions, BaseSettings):
    """Everything a `Client` can be told.

    Each field can also be given to `Client` by name, or as `PENSTOCK_…` in the environment.

    Args:
        api_keys: API keys; text with commas works. Empty: `ANTHROPIC_API_KEY` is read when the client is entered.
        base_url: Of the API; the SDK's default (`ANTHROPIC_BASE_URL`, else the public API) if not given. Plain http
            only to this machine, and no user or password in it.
        allow_http: Allow plain http to other machines.
        transport: `"aiohttp"` (less CPU) or `"httpx2"`.
        timeout_s: Seconds for each attempt, more than 0; unset by default, because any value switches off the SDK's
            guard against long requests.
        deadline_s: Seconds for each call, waits and attempts together, more than 0; `None` for no bound. Items of a
            fan-out have none.
        close_timeout_s: Seconds that calls under way may take when the client is closed, before they are cancelled;
            0 or more.
        max_response_bytes: What an answer may have, decompressed; 65,536 or more. A larger one is `ResponseTooLarge`.
        model: For `fan_out`, `map`, the tool loop and conversations, where none is given.
        max_tokens: For `fan_out`, `map`, the tool loop and conversations, where none is given; 1 or more.
        system: The system prompt of conversations, where none is given; not empty.
        token_budget: Tokens that each conversation may use, where none is given; 1,000 or more, `None` for no bound.
        max_tool_iterations: Replies of the model in a tool loop, where no `max_iterations` is given; 1 to 10.
        retry: How often and when failed attempts are repeated.
        breaker: When a failing service is left alone.
        sanitize: What is looked for in the input of requests, and what is done about it; `True` for the defaults,
            `None` or `False` for nothing.
        log: Whether to log one line for each call to the logger `penstock`.

    Raises:
        pydantic.ValidationError: A bad or unknown setting; it is also a `ValueError`.

    Example:
        >>> Settings(api_keys=["sk-example"], concurrency=8).api_keys
        (Secret('key-f2d4b279'),)
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_ignore_empty=True,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        title="Settings",
    )

    api_keys: Annotated[tuple[Secret, ...], NoDecode, BeforeValidator(_as_secrets)] = ()
    allow_http: bool = False
    base_url: str | None = None
    transport: Literal["aiohttp", "httpx2"] = "aiohttp"
    timeout_s: float | None = Field(default=None, gt=0)
    deadline_s: float | None = Field(default=600.0, gt=0)
    close_timeout_s: float = Field(default=10.0, ge=0)
    max_response_bytes: int = Field(default=MAX_RESPONSE_BYTES, ge=65_536)
    model: str | None = Field(default=None, min_length=1)
    max_tokens: int = Field(default=8192, ge=1)
    system: str | None = Field(default=None, min_length=1)
    token_budget: int | None = Field(default=None, ge=1000)
    max_tool_iterations: int = Field(default=5, ge=1, le=10)
    retry: RetryOptions = RetryOptions()
    breaker: BreakerOptions = BreakerOptions()
    sanitize: Annotated[SanitizeOptions | None, BeforeValidator(_as_sanitize)] = None
    log: bool = True

    def __init__(self, **fields: Any) -> None:
        failed: ValidationError | None = None
        try:
            super().__init__(**fields)
            _warn_of_unknown(type(self).model_fields)
        except ValidationError as error:
            failed = _without_secrets(error)
        except SettingsError as error:
            failed = _unreadable(error)
        if failed is not None:
            # Raised out here, so that the original, which holds the input, is not its context; and without the fields,
            # or what was made of them, because some tracebacks show local variables.
            fields.clear()
            del self
            raise failed

    def __setattr__(self, name: str, value: object) -> None:
        failed: ValidationError | None = None
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            failed = _without_secrets(error)
        if failed is not None:
            del value
            raise failed

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        return None if url is None else check_base_url(url, allow_http=bool(info.data.get("allow_http")))

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
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                del dotenv_settings, file_secret_settings
                return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

        return cls(**dict(FromFile()))


def _warn_of_unknown(fields: Iterable[str]) -> None:
    """Warn of variables that look like settings and are none: they may be misspelt, or some platform's own."""
    known = {f"{_PREFIX}{name.upper()}" for name in fields}
    for variable in os.environ:
        name = variable.upper().partition("__")[0]
        if name.startswith(_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.warn(f"{variable} is no setting of penstock and is ignored{hint}", UserWarning, stacklevel=3)


def _without_secrets(error: ValidationError) -> ValidationError:
    """Return the error with every input hidden that may hold a secret."""
    lines: list[InitErrorDetails] = []
    for line in error.errors(include_url=False):
        shown = _may_show(line["type"], line["loc"], line["input"])
        message = f"is no setting{_hint(line['loc'])}" if line["type"] == "extra_forbidden" else line["msg"]
        place = tuple(_shown_name(part) for part in line["loc"])
        lines.append(_line(line["type"], message, place, line["input"] if shown else "***"))
    return ValidationError.from_exception_data(error.title, lines)


def _shown_name(part: int | str) -> int | str:
    """Return a part of a place, unless it may be a key: of a dictionary that was given, it is the caller's own."""
    is_name = isinstance(part, int) or part.isidentifier() or len(part) <= _LONGEST_NAME
    return "***" if not is_name or str(part).startswith("sk-") else part


def _hint(place: tuple[int | str, ...]) -> str:
    """Say what may be meant by a name that is no setting."""
    groups = {name: _fields_of(Settings, name) for name in Settings.model_fields}
    name = str(place[-1])
    if len(place) > 1:
        return _nearest(name, groups.get(str(place[0]), ()))
    if name in _OF_THE_SDK:
        return f"; did you mean {_OF_THE_SDK[name]}?"
    if name in inspect.signature(anthropic.AsyncAnthropic).parameters:
        return f"; give the SDK's client, which has it: Client(sdk=AsyncAnthropic({name}=…))"
    for group, names in groups.items():
        if name in names:
            return f"; did you mean {group}={{{name!r}: …}}?"
    return _nearest(name, groups)


def _fields_of(settings: type[BaseSettings], name: str) -> tuple[str, ...]:
    """Return the fields of a setting that has some."""
    kinds = (settings.model_fields[name].annotation, *get_args(settings.model_fields[name].annotation))
    return tuple(field for kind in kinds for field in getattr(kind, "model_fields", ()))


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _unreadable(error: SettingsError) -> ValidationError:
    """Return the error for a variable that holds no JSON where its field is made of parts."""
    found = re.search(r'field "(\w+)"', str(error))
    name = found.group(1) if found else "settings"
    variable = f"{_PREFIX}{name.upper()}"
    message = f"must be JSON, or one variable for each part: {variable}__…"
    return ValidationError.from_exception_data("Settings", [_line("json_invalid", message, (name,), "***")])


def _line(kind: str, message: str, place: tuple[int | str, ...], shown: object) -> InitErrorDetails:
    custom = PydanticCustomError(kind, message)  # pyright: ignore[reportArgumentType]
    return InitErrorDetails(type=custom, loc=place, input=shown)


def _may_show(kind: str, place: tuple[int | str, ...], value: object) -> bool:
    if kind in {"extra_forbidden", "frozen_instance"} or not place or place[0] in _HIDDEN:
        return False
    return (
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and len(value) <= _LONGEST_SHOWN)
    )


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings` as keywords; a test keeps both the same."""

    api_keys: Sequence[str | Secret] | str
    base_url: str | None
    allow_http: bool
    transport: Literal["aiohttp", "httpx2"]
    timeout_s: float | None
    deadline_s: float | None
    close_timeout_s: float
    max_response_bytes: int
    model: str | None
    max_tokens: int
    system: str | None
    token_budget: int | None
    limits: Limits | dict[str, Limits] | None
    concurrency: int | Literal["adaptive"]
    min_concurrency: int
    max_concurrency: int
    max_queued: int | None
    queue_timeout_s: float | None
    balance: Balance
    key_weights: dict[str, float]
    quota_scope: QuotaScope
    fair_by: str
    tenant_weights: dict[str, float]
    priority_weights: dict[str, float]
    max_tool_iterations: int
    retry: RetryOptions
    breaker: BreakerOptions
    sanitize: SanitizeOptions | bool | None
    log: bool
