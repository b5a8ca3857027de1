"""A chat in the browser: FastAPI, one static page, one WebSocket.

    python app.py                             answers come from the simulator: no key, no network
    uvicorn --factory app:chat                answers come from Claude; the key is in ANTHROPIC_API_KEY

The page keeps the conversation and sends all of it with each question: nothing is lost when the server restarts.
"""

from __future__ import annotations

import argparse
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anthropic
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from penstock import Client
from penstock.simulator import Simulator
from penstock.web import LabelsMiddleware, check_origin, forward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

MODEL = "claude-sonnet-5-5"
HOSTS = ["127.0.0.1", "localhost"]
PAGE = Path(__file__).with_name("index.html")
# Nothing but this page's own code and socket, and no frame around it.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SIMULATED = (
    "This answer is simulated: nobody read your question. It comes from a Messages API inside this process, at the "
    "pace of a model, through the same client that would ask Claude, and over one WebSocket. Press Stop, and the "
    "request ends at once and frees its slot; the next question can go out. To talk to Claude, set ANTHROPIC_API_KEY "
    "and start this application with uvicorn, as its first lines say."
)


class Turn(BaseModel):
    """What one side said."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=100_000)


class Said(BaseModel):
    """What the page sends: the conversation so far, whose last turn is the question; or a stop."""

    type: Literal["ask", "stop"]
    messages: list[Turn] = Field(default=[], max_length=1000)


def labels_from(scope: Mapping[str, Any]) -> dict[str, str]:
    """Label what each connection asks: here a real application names the signed-in user."""
    return {"feature": scope["path"].strip("/") or "page", "priority": "interactive"}


def chat(claude: Client | None = None) -> FastAPI:
    """Make the application, whose lifespan is the client's."""
    client = claude or Client()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.add_middleware(LabelsMiddleware, labels_from=labels_from)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})

    @app.websocket("/chat")
    async def talk(websocket: WebSocket) -> None:
        if not check_origin(websocket):
            await websocket.close(1008)
            return
        await websocket.accept()
        # The page was told of errors, and the log has them.
        with suppress(WebSocketDisconnect, anthropic.AnthropicError, TimeoutError):
            async for text in websocket.iter_text():
                try:
                    said = Said.model_validate_json(text)
                except ValidationError:
                    await websocket.close(1008)
                    return
                # A stop that comes here came too late: the answer was complete.
                if said.type == "ask":
                    messages: Any = [turn.model_dump() for turn in said.messages]
                    stream = client.stream(model=MODEL, max_tokens=2000, messages=messages)
                    await forward(stream, websocket, cost=client.cost)

    return app


def main() -> None:
    """Serve the chat on the simulator, to this machine only."""
    parser = argparse.ArgumentParser(description="A chat on penstock's simulator.")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one (default: %(default)s)")
    port = parser.parse_args().port
    simulator = Simulator(latency_s=0.4, tokens_per_s=30)
    simulator.reply(SIMULATED, times=100_000)
    uvicorn.run(chat(Client(sdk=simulator.client(), close_timeout_s=1)), host="127.0.0.1", port=port)


if __name__ == "__main__":
    main()
