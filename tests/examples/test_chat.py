"""The example chat, in a real browser: Debian's Chromium, without a window, driven by Playwright."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from anyio.from_thread import start_blocking_portal
from playwright.sync_api import expect, sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from penstock import Client, RetryOptions
from penstock.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal
    from playwright.sync_api import Browser, Page

CHAT = Path(__file__).parents[2] / "docs" / "examples" / "chat" / "app.py"
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LONG = " ".join(f"word{number}" for number in range(300))

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: package chromium)")
pytestmark = pytest.mark.slow


class Chat:
    """The example as it runs.

    Attributes:
        url: Where.
        claude: Its client.
        simulator: What answers.
    """

    def __init__(self, url: str, claude: Client, simulator: Simulator, portal: BlockingPortal) -> None:
        self.url = url
        self.claude = claude
        self.simulator = simulator
        self._portal = portal

    def slots(self) -> int:
        """Slots taken; a client is asked in its own event loop."""
        return self._portal.call(self.claude.statistics).admission.slots_used

    def idle(self) -> bool:
        return self.slots() == self.simulator.in_flight == 0


def example() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("chat_example", CHAT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def chat() -> Iterator[Chat]:
    """The example on a simulator that answers like a model: after a moment, a few words at a time."""
    simulator = Simulator(latency_s=0.1, tokens_per_s=200)
    claude = Client(sdk=simulator.client(), close_timeout_s=0.5, log=False, retry=RetryOptions(max_attempts=1))
    app = example().chat(claude)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=2)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, start_blocking_portal() as portal:
        portal.start_task_soon(server.serve, [listener])
        yield Chat(f"http://127.0.0.1:{listener.getsockname()[1]}/", claude, simulator, portal)
        server.should_exit = True


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, chat: Chat) -> Iterator[Page]:
    """The example's page; an error in its script, or a refusal of its policy, fails the test."""
    wrong: list[str] = []
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(chat.url)
    yield page
    context.close()
    assert wrong == []


def send(page: Page, text: str) -> None:
    """Type a question and send it."""
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def answers(page: Page) -> Any:
    """The answers, and the errors, that the page shows."""
    return page.locator(".turn:not(.mine)")


def wait_for(page: Page, condition: Callable[[], bool]) -> None:
    """Wait until something holds on the server."""
    for _ in range(1000):
        if condition():
            return
        page.wait_for_timeout(10)
    pytest.fail("it did not come about within ten seconds")


@in_a_browser
def test_text_appears_before_the_reply_is_complete(page: Page, chat: Chat) -> None:
    """The words come one after another while the request is under way; then its tokens and its cost are shown."""
    chat.simulator.reply(LONG)
    send(page, "Say something long.")
    answer = answers(page).last
    expect(answer.locator("p")).to_contain_text("word3")
    assert chat.simulator.in_flight == 1
    early = answer.locator("p").inner_text()
    assert early in LONG
    assert early != LONG
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=30_000)
    assert answer.locator("p").inner_text() == LONG
    expect(answer.locator(".facts")).to_contain_text("tokens · $0.0")
    expect(page.locator("#total")).to_contain_text("tokens · $0.0")
    assert chat.idle()


@in_a_browser
@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_frees_the_slot_and_the_next_question_is_answered(page: Page, chat: Chat, how: str) -> None:
    """The request ends at once, what had come stays, and the conversation goes on with it."""
    chat.simulator.reply(LONG)
    chat.simulator.reply("Right.")
    send(page, "Say something long.")
    expect(answers(page).last.locator("p")).to_contain_text("word3")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    wait_for(page, chat.idle)
    expect(answers(page).last.locator(".facts")).to_contain_text("stopped · at least")
    kept = answers(page).last.locator("p").inner_text()
    assert chat.simulator.journal[0].outcome == "client closed"

    page.get_by_label("Your message").fill("And in short?")
    page.get_by_label("Your message").press("Enter")
    expect(answers(page).last.locator("p")).to_have_text("Right.")
    expect(answers(page).last.locator(".facts")).to_contain_text("tokens")
    body = chat.simulator.journal[-1].body
    assert body is not None
    assert [turn["content"] for turn in body["messages"]] == ["Say something long.", kept, "And in short?"]
    assert chat.idle()


@in_a_browser
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("stream_error_after_content", "The service is busy."),
        ("stream_drop_after_content", "The answer broke off."),
        ("api_error", "The request failed."),
        ("rate_limited", "(1 s)"),
    ],
)
def test_a_server_error_shows_as_a_message(page: Page, chat: Chat, fault: str, message: str) -> None:
    """It is announced as an alert, the question comes back into its box, and asking again works."""
    chat.simulator.reply("Twice the same answer.", times=2)
    chat.simulator.inject(fault)
    send(page, "Does it work?")
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.get_by_label("Your message")).to_have_value("Does it work?")
    page.get_by_role("button", name="Send").click()
    expect(answers(page).last.locator("p")).to_contain_text("answer")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert chat.idle()


@in_a_browser
def test_leaving_the_page_ends_the_request(page: Page, chat: Chat) -> None:
    """A tab that is closed costs nothing more."""
    chat.simulator.inject("stall")
    send(page, "Are you there?")
    wait_for(page, lambda: chat.slots() == 1)
    page.goto("about:blank")
    wait_for(page, chat.idle)


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_and_used_without_a_mouse(page: Page, scheme: Any) -> None:
    """Text stands out from its background in both schemes (WCAG 2.2, 1.4.3), and everything has a name."""
    page.emulate_media(color_scheme=scheme)
    send(page, "Hello")
    expect(answers(page).last.locator(".facts")).to_contain_text("tokens")
    for selector in ("h1", ".mine p", ".turn:not(.mine) p", ".facts", "#total", "#send"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    expect(page.get_by_role("log", name="Conversation")).to_be_visible()
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("By keyboard")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".mine")).to_have_count(2)


CONTRAST = """selector => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const luminance = (color) => {
    const [red, green, blue] = channels(color).map((value) => linear(value / 255));
    return .2126 * red + .7152 * green + .0722 * blue;
  };
  const background = (element) => getComputedStyle(element).backgroundColor;
  const element = [...document.querySelectorAll(selector)].filter((each) => each.textContent).pop();
  let behind = element;
  while (behind.parentElement && channels(background(behind))[3] === 0) behind = behind.parentElement;
  const [one, other] = [getComputedStyle(element).color, background(behind)].map(luminance);
  return (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
}"""


def test_pages_of_other_origins_are_refused(chat: Chat) -> None:
    """A page of somebody else, or one that pretends to be of this server by its name, gets no socket."""
    url = chat.url.replace("http", "ws") + "chat"
    refused = ({"Origin": "https://evil.example"}, {"Origin": "http://evil.example", "Host": "evil.example"})
    for headers in refused:
        with pytest.raises(InvalidStatus), connect(url, additional_headers=headers, proxy=None):
            pass
    with connect(url, additional_headers={"Origin": chat.url.rstrip("/")}, proxy=None) as socket:
        socket.send('{"type": "stop"}')
        socket.send("nonsense")
        with pytest.raises(Exception, match="1008"):
            socket.recv(timeout=10)
    assert chat.simulator.journal == []


def test_it_serves_itself_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program it listens on 127.0.0.1, and its answers are simulated."""
    ran: list[dict[str, Any]] = []
    module = example()
    monkeypatch.setattr("sys.argv", ["app.py", "--port", "0"])
    monkeypatch.setattr(uvicorn, "run", lambda _app, **options: ran.append(options))
    module.main()
    assert ran == [{"host": "127.0.0.1", "port": 0}]
