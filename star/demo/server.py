"""Serving the page: on this machine alone unless told otherwise, and nothing that the browser would fetch elsewhere."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star.data.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

LARGEST_FILE = 8 * 2**20  # bytes that somebody may drop on the page
# The page's own scripts, styles, pictures and sockets; no other address, whatever a library's page would ask for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob: ws: wss:; worker-src 'self' "
    "blob:; frame-ancestors 'self'"
)
Message = MutableMapping[str, Any]


def prepare(folder: Path) -> None:
    """Before gradio is imported: no statistics are sent, and files stay in this folder.

    Raises InputError if gradio is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise InputError(
            "`star demo` needs gradio, which is not installed: run `.venv/bin/pip install -c constraints.txt -e "
            "'.[demo]'` in a checkout, or `pip install 'star-t2i[demo]'`"
        ) from error


def application(
    models: list[str], folder: Path, *, limit: int = 10, device: str | None = None, dtype: str = "auto"
) -> "FastAPI":
    """The page as an ASGI application. folder: for pictures, as it was prepared. limit: see page.page."""
    import gradio
    from fastapi import FastAPI

    from star.demo.page import CSS, THEME, page
    from star.demo.studio import Studio

    studio = Studio(models, folder / "pictures", device, dtype)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OwnOnly)
    return gradio.mount_gradio_app(
        app,
        page(studio, limit),
        path="/",
        theme=THEME,
        css=CSS,
        max_file_size=LARGEST_FILE,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        allowed_paths=[str(folder)],
    )


class OwnOnly:
    """Adds POLICY to every answer, and lets nobody guess its kind."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Callable[[Message], Awaitable[None]]) -> None:
        """As ASGI has it."""

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self.app(scope, receive, told)


def serve(app: "FastAPI", host: str, port: int) -> None:
    """Until it is interrupted. Raises InputError if the place is taken."""
    import socket

    import uvicorn

    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise InputError(
            f"{host}:{port} cannot be listened at ({error.strerror or error}): give another --port"
        ) from error
    print(f"http://{host}:{port}", flush=True)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run()  # unlike uvicorn.run it hands an interrupt on
