from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import traceback
import typing
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from penstock import BreakerOptions, Client, Limits, RetryOptions, SanitizeOptions, Settings
from penstock._core.secret import Secret
from penstock.settings import SettingsFields, check_base_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "sk-ant-api03-very-secret-key"

# Every field: what stands in a variable, and what comes of it.
FIELDS: dict[str, tuple[str, object]] = {
    "api_keys": (f"{KEY}, sk-2", (Secret(KEY), Secret("sk-2"))),
    "base_url": ("https://proxy.example/v1", "https://proxy.example/v1"),
    "allow_http": ("true", True),
    "transport": ("httpx2", "httpx2"),
    "timeout_s": ("2.5", 2.5),
    "deadline_s": ("90", 90.0),
    "close_timeout_s": ("0", 0.0),
    "max_response_bytes": ("1000000", 1_000_000),
    "model": ("claude-haiku-5-5", "claude-haiku-5-5"),
    "max_tokens": ("77", 77),
    "limits": ('{"requests_per_minute": 50}', Limits(requests_per_minute=50)),
    "concurrency": ("8", 8),
    "min_concurrency": ("2", 2),
    "max_concurrency": ("9", 9),
    "max_queued": ("0", 0),
    "queue_timeout_s": ("1.5", 1.5),
    "balance": ("random", "random"),
    "key_weights": ('{"key-12345678": 2}', {"key-12345678": 2.0}),
    "quota_scope": ("organization", "organization"),
    "fair_by": ("team", "team"),
    "tenant_weights": ('{"u1": 2}', {"u1": 2.0}),
    "priority_weights": ('{"batch": 2}', {"batch": 2.0}),
    "system": ("You are terse.", "You are terse."),
    "token_budget": ("50000", 50_000),
    "max_tool_iterations": ("3", 3),
    "retry": ('{"max_attempts": 7}', RetryOptions(max_attempts=7)),
    "breaker": ('{"window": 50}', BreakerOptions(window=50)),
    "sanitize": ('{"max_characters": 500}', SanitizeOptions(max_characters=500)),
    "log": ("false", False),
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own environment decides a test."""
    for name in os.environ:
        if name.startswith(("PENSTOCK_", "ANTHROPIC_")):
            monkeypatch.delenv(name)


class TestSources:
    def test_every_field_is_in_the_table(self) -> None:
        """What follows speaks of all fields."""
        assert FIELDS.keys() == Settings.model_fields.keys()

    def test_every_field_is_a_keyword_of_the_client(self) -> None:
        """The keywords that type checkers know are the fields that there are."""
        assert SettingsFields.__annotations__.keys() == Settings.model_fields.keys()
        assert not typing.get_type_hints(Settings).keys() < Settings.model_fields.keys()

    @pytest.mark.lengthy
    @pytest.mark.parametrize("name", FIELDS)
    def test_every_field_can_be_a_variable(self, name: str) -> None:
        """`PENSTOCK_` and the field's name, in any case."""
        text, value = FIELDS[name]
        for variable in (f"PENSTOCK_{name.upper()}", f"penstock_{name}"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(variable, text)
                found = getattr(Settings(), name)
            assert found == value
            assert found != getattr(Settings(), name)

    @pytest.mark.lengthy
    @pytest.mark.parametrize("name", FIELDS)
    def test_an_empty_variable_is_none(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """As container tools write it where nothing was given."""
        monkeypatch.setenv(f"PENSTOCK_{name.upper()}", "")
        assert Settings() == Settings(**{name: getattr(Settings(), name)})

    def test_parts_have_variables_of_their_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nested fields follow two underscores."""
        monkeypatch.setenv("PENSTOCK_LIMITS__REQUESTS_PER_MINUTE", "50")
        monkeypatch.setenv("PENSTOCK_RETRY__MAX_ATTEMPTS", "9")
        monkeypatch.setenv("PENSTOCK_RETRY__BASE_S", "0.25")
        monkeypatch.setenv("PENSTOCK_BREAKER__OPEN_S", "5")
        settings = Settings()
        assert settings.limits == Limits(requests_per_minute=50)
        assert settings.retry == RetryOptions(max_attempts=9, base_s=0.25)
        assert settings.breaker.open_s == 5

    @pytest.mark.parametrize("given", [True, "true", "1", "ON", 1])
    def test_sanitize_can_be_a_plain_yes(self, monkeypatch: pytest.MonkeyPatch, given: Any) -> None:
        """It means the defaults; its parts have variables of their own."""
        assert Settings(sanitize=given).sanitize == SanitizeOptions()
        monkeypatch.setenv("PENSTOCK_SANITIZE", str(given).lower())
        assert Settings().sanitize == SanitizeOptions()
        monkeypatch.delenv("PENSTOCK_SANITIZE")
        monkeypatch.setenv("PENSTOCK_SANITIZE__ON_PATTERN", "refuse")
        assert Settings().sanitize == SanitizeOptions(on_pattern="refuse")

    @pytest.mark.parametrize("given", [False, "false", "0", "off", None])
    def test_sanitize_can_be_a_plain_no(self, given: Any) -> None:
        """Which is what it is by itself."""
        assert Settings(sanitize=given).sanitize is None
        assert Settings().sanitize is None

    def test_limits_can_be_given_by_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A mapping from patterns of model names, in code and in the environment."""
        by_model = {"claude-haiku-*": Limits(requests_per_minute=9), "*": Limits(input_tokens_per_minute=1000)}
        assert Settings(limits=by_model).limits == by_model
        monkeypatch.setenv("PENSTOCK_LIMITS", '{"claude-haiku-*": {"requests_per_minute": 9}}')
        assert Settings().limits == {"claude-haiku-*": Limits(requests_per_minute=9)}

    def test_arguments_win_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What code says holds; what it leaves open comes from outside."""
        monkeypatch.setenv("PENSTOCK_CONCURRENCY", "8")
        monkeypatch.setenv("PENSTOCK_MAX_TOKENS", "9")
        monkeypatch.setenv("PENSTOCK_RETRY__BASE_S", "3")
        settings = Settings(concurrency=5, retry=RetryOptions(max_attempts=2))
        assert (settings.concurrency, settings.max_tokens) == (5, 9)
        assert settings.retry == RetryOptions(max_attempts=2)

    def test_nothing_is_read_when_it_is_imported(self) -> None:
        """A bad variable is told by whoever asks for settings, not by the import."""
        code = "import penstock; print('imported')"
        environment = {**os.environ, "PENSTOCK_CONCURRENCY": "many"}
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert ran.stdout.strip() == "imported"

    def test_a_misspelt_variable_is_warned_about(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is ignored, because platforms set variables by such names too, but not in silence."""
        monkeypatch.setenv("PENSTOCK_CONCURENCY", "8")
        with pytest.warns(UserWarning, match="did you mean PENSTOCK_CONCURRENCY") as seen:
            Settings()
        assert seen[0].filename == __file__
        monkeypatch.delenv("PENSTOCK_CONCURENCY")
        monkeypatch.setenv("PENSTOCK_PORT_8080_TCP", "tcp://10.0.0.1:8080")
        with pytest.warns(UserWarning, match=r"PENSTOCK_PORT_8080_TCP is no setting of penstock and is ignored$"):
            Settings()
        monkeypatch.delenv("PENSTOCK_PORT_8080_TCP")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            monkeypatch.setenv("PENSTOCK_RETRY__MAX_ATTEMPTS", "8")
            Settings()


class TestFile:
    def test_a_file_gives_every_field(self, tmp_path: Path) -> None:
        """TOML, with tables for the parts."""
        path = tmp_path / "penstock.toml"
        path.write_text(
            f'api_keys = ["{KEY}"]\nconcurrency = 4\n[retry]\nmax_attempts = 2\n[limits]\nrequests_per_minute = 5\n',
            encoding="utf-8",
        )
        for settings in (Settings.from_file(path), Settings.from_file(str(path))):
            assert settings.api_keys == (Secret(KEY),)
            assert settings.concurrency == 4
            assert settings.retry.max_attempts == 2
            assert settings.limits == Limits(requests_per_minute=5)
            assert type(settings) is Settings

    def test_the_environment_wins_over_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Part by part."""
        path = tmp_path / "penstock.toml"
        path.write_text("concurrency = 4\nmax_tokens = 5\n[retry]\nmax_attempts = 2\ncap_s = 7\n", encoding="utf-8")
        monkeypatch.setenv("PENSTOCK_CONCURRENCY", "8")
        monkeypatch.setenv("PENSTOCK_RETRY__MAX_ATTEMPTS", "3")
        settings = Settings.from_file(path)
        assert (settings.concurrency, settings.max_tokens) == (8, 5)
        assert (settings.retry.max_attempts, settings.retry.cap_s) == (3, 7)

    def test_a_missing_file_is_told(self, tmp_path: Path) -> None:
        """It is not taken for an empty one."""
        with pytest.raises(FileNotFoundError, match=r"absent\.toml"):
            Settings.from_file(tmp_path / "absent.toml")

    @pytest.mark.parametrize("text", [f'api_key = "{KEY}"', f'api_keys = ["{KEY}", 7]', f'timeout_s = "{KEY}"'])
    def test_a_bad_file_shows_no_secret(self, tmp_path: Path, text: str) -> None:
        """Unknown names and bad values are errors, as everywhere."""
        path = tmp_path / "penstock.toml"
        path.write_text(text, encoding="utf-8")
        error = raised_by(lambda: Settings.from_file(path))
        assert text.split(maxsplit=1)[0] in str(error)
        assert error.title == "Settings"


class TestValues:
    def test_settings_are_frozen(self) -> None:
        """Once checked they stay as they are, and the error for trying shows no value."""
        settings = Settings(api_keys=[KEY])
        for name, value in (("concurrency", 3), ("api_keys", [KEY]), ("other", KEY)):
            raised_by(partial(setattr, settings, name, value))
        raised_by(partial(setattr, settings.retry, "max_attempts", 3))
        assert settings == Settings(api_keys=[KEY])

    @pytest.mark.lengthy
    @pytest.mark.parametrize(
        ("fields", "name", "allowed", "shown"),
        [
            ({"concurrency": 0}, "concurrency", "1 or more, or 'adaptive'", "not 0"),
            ({"concurrency": "many"}, "concurrency", "integer", "input_value='many'"),
            ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1", "input_value=0"),
            ({"timeout_s": -1}, "timeout_s", "greater than 0", "input_value=-1"),
            ({"timeout_s": 0}, "timeout_s", "greater than 0", "input_value=0"),
            ({"deadline_s": float("nan")}, "deadline_s", "finite", "input_value=nan"),
            ({"deadline_s": float("inf")}, "deadline_s", "finite", "input_value=inf"),
            ({"close_timeout_s": -0.1}, "close_timeout_s", "greater than or equal to 0", "input_value=-0.1"),
            (
                {"max_response_bytes": 65_535},
                "max_response_bytes",
                "greater than or equal to 65536",
                "input_value=65535",
            ),
            ({"transport": "curl"}, "transport", "'aiohttp' or 'httpx2'", "input_value='curl'"),
            ({"balance": "fair"}, "balance", "'round_robin'", "input_value='fair'"),
            ({"model": ""}, "model", "at least 1 character", "input_value=''"),
            ({"max_queued": -1}, "max_queued", "greater than or equal to 0", "input_value=-1"),
            ({"retry": {"max_attempts": 0}}, "retry.max_attempts", "greater than or equal to 1", "input_value=0"),
            ({"log": "maybe"}, "log", "boolean", "input_value='maybe'"),
        ],
    )
    def test_a_bad_value_is_told_with_field_allowed_and_value(
        self, fields: dict[str, Any], name: str, allowed: str, shown: str
    ) -> None:
        """So that it can be mended without reading the source."""
        text = str(raised_by(lambda: Settings(**fields)))
        assert name in text
        assert allowed in text
        assert shown in text

    def test_a_bad_variable_is_told_with_its_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also where it comes as text."""
        monkeypatch.setenv("PENSTOCK_RETRY__MAX_ATTEMPTS", "0")
        text = str(raised_by(Settings))
        assert "retry.max_attempts" in text
        assert "input_value='0'" in text

    def test_all_that_is_wrong_is_told_at_once(self) -> None:
        """Nobody has to mend one thing after the other."""
        error = raised_by(lambda: Settings(max_queued=-1, max_tokens=0, transport="x"))
        assert error.error_count() == 3

    @pytest.mark.parametrize(
        ("given", "keys"),
        [
            ("sk-1", ["sk-1"]),
            (" sk-1 , sk-2, ", ["sk-1", "sk-2"]),
            (["sk-1", "sk-2"], ["sk-1", "sk-2"]),
            (("sk-1",), ["sk-1"]),
            ([Secret("sk-1"), " sk-2\n"], ["sk-1", "sk-2"]),
            ("", []),
            ([], []),
        ],
    )
    def test_keys_may_be_given_in_many_ways(self, given: Any, keys: list[str]) -> None:
        """A text with commas, or a sequence of texts or secrets; space around them doesn't count."""
        assert [key.reveal() for key in Settings(api_keys=given).api_keys] == keys

    def test_keys_are_never_shown(self) -> None:
        """Neither by `repr`, `str` nor as JSON; and settings that hold keys can't be pickled."""
        settings = Settings(api_keys=[KEY])
        assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {dict(settings)}"
        assert Secret(KEY).name in repr(settings)
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(settings)
        assert pickle.loads(pickle.dumps(Settings(concurrency=5))).concurrency == 5


WRONG: dict[str, dict[str, Any]] = {
    "a number": {"api_keys": 1234567890123},
    "bytes": {"api_keys": KEY.encode()},
    "a mapping": {"api_keys": {KEY: 1}},
    "twice": {"api_keys": [KEY, KEY]},
    "an empty one": {"api_keys": [KEY, ""]},
    "not ASCII": {"api_keys": [KEY + "…"]},
    "a line break": {"api_keys": [KEY + "\n" + KEY]},
    "no text": {"api_keys": [KEY, 7]},
    "beside another bad field": {"api_keys": [KEY], "concurrency": 0},
    "a misspelt name": {"api_key": KEY},
    "another misspelt name": {"apikeys": [KEY]},
    "a misspelt name inside": {"retry": {"key": KEY}},
    "the wrong field": {"timeout_s": KEY},
    "the wrong field, nested": {"retry": {"max_attempts": KEY}},
    "as limits": {"limits": KEY},
    "in a URL's password": {"base_url": f"https://user:{KEY}@example.com"},
    "in a URL's user": {"base_url": f"http://{KEY}@example.com"},
    "as a URL": {"base_url": KEY},
    "in a URL that is none": {"base_url": f"http://[{KEY}"},
}


class TestSecrets:
    @pytest.mark.lengthy
    @pytest.mark.parametrize("case", WRONG)
    def test_no_error_shows_a_key(self, case: str) -> None:
        """However a key got into the wrong place, the error, all that hangs on it, and its pickle are free of it."""
        raised_by(lambda: Settings(**WRONG[case]))

    @pytest.mark.lengthy
    @pytest.mark.parametrize("case", WRONG)
    def test_no_error_of_a_client_shows_a_key(self, case: str) -> None:
        """The same where the fields are given to the client."""
        raised_by(lambda: Client(**WRONG[case]))
        raised_by(lambda: Client(Settings(log=False), **WRONG[case]))

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("PENSTOCK_API_KEYS", f"{KEY},{KEY}"),
            ("PENSTOCK_API_KEYS__KEY", KEY),
            ("PENSTOCK_RETRY", f"{{{KEY}"),
            ("PENSTOCK_RETRY", KEY),
            ("PENSTOCK_RETRY__KEY", KEY),
            ("PENSTOCK_LIMITS", f'["{KEY}"'),
            ("PENSTOCK_CONCURRENCY", KEY),
            ("PENSTOCK_BASE_URL", f"http://u:{KEY}@example.com"),
        ],
    )
    def test_no_error_of_a_variable_shows_a_key(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        """Nor do those of reading a variable; they name its field all the same."""
        monkeypatch.setenv(variable, value)
        text = str(raised_by(Settings))
        assert variable.removeprefix("PENSTOCK_").partition("__")[0].lower() in text

    def test_what_is_no_json_says_how_to_give_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part is JSON, or one variable for each of its own."""
        monkeypatch.setenv("PENSTOCK_RETRY", "5 times")
        text = str(raised_by(Settings))
        assert "must be JSON, or one variable for each part: PENSTOCK_RETRY__…" in text

    def test_pydantics_own_ways_show_no_key_either(self) -> None:
        """Settings made from a mapping or from JSON are checked alike."""
        for made in (
            lambda: Settings.model_validate({"api_keys": [KEY], "concurrency": 0}),
            lambda: Settings.model_validate_json(json.dumps({"api_key": KEY})),
        ):
            raised_by(made)


def raised_by(make: Callable[[], object]) -> pydantic.ValidationError:
    """The validation error that is raised; nothing about it shows the key."""
    with pytest.raises(pydantic.ValidationError) as raised:
        make()
    error = raised.value
    assert isinstance(error, ValueError)
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None:
            continue
        assert KEY not in f"{each!r} {each} {each.args} {getattr(each, '__notes__', '')} {vars(each)}"
        if isinstance(each, pydantic.ValidationError):
            assert KEY not in f"{each.errors()} {each.json()}"
        assert KEY.encode() not in pickle.dumps(each)
        waiting += [each.__cause__, each.__context__]
    for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
        if f"{os.sep}penstock{os.sep}" in frame.filename:
            assert not any(KEY in shown for shown in (frame.locals or {}).values()), frame
    return error


class TestBaseURL:
    @pytest.mark.parametrize(
        "url",
        ["https://api.example", "http://127.0.0.1:8080", "http://localhost", "http://[::1]:1", "HTTP://127.1.2.3/v1"],
    )
    def test_https_and_this_machine_are_allowed(self, url: str) -> None:
        """Keys travel encrypted, or not at all."""
        assert check_base_url(url, allow_http=False) == url
        assert Settings(base_url=url).base_url == url

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.com",
            "http://localhost.example.com",
            "http://10.0.0.1",
            "http://127.0.0.1.nip.io",
            "http://0.0.0.0",
        ],
    )
    def test_plain_http_to_another_machine_is_refused(self, url: str) -> None:
        """Unless it is asked for; the error says how."""
        with pytest.raises(ValueError, match="allow_http=True"):
            check_base_url(url, allow_http=False)
        assert "base_url" in str(raised_by(lambda: Settings(base_url=url)))
        assert Settings(base_url=url, allow_http=True).base_url == url

    @pytest.mark.parametrize("url", ["", "example.com", "ftp://example.com", "https://", "file:///etc/passwd", "//x"])
    def test_anything_else_is_no_base_url(self, url: str) -> None:
        """Where requests can't be sent, none are."""
        with pytest.raises(ValueError, match="must be an http"):
            check_base_url(url, allow_http=True)
