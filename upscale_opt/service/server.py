"""Serves the application until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from types import FrameType

import uvicorn

from upscale_opt.errors import UpscaleError
from upscale_opt.service.app import create_app
from upscale_opt.service.settings import Settings
from upscale_opt.service.worker import set_up_logging

log = logging.getLogger("upscale_opt.service")

_GRACE = 5
"""Seconds in which requests that are being answered must come to an end."""


_BACKLOG = 256
"""Connections that wait; without files for more, so many lines are logged per second."""


class _Server(uvicorn.Server):
    """A server that lets event streams end as soon as it is told to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.service.end()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UpscaleError: if the storage or the address cannot be used.
    """
    set_up_logging()
    _allow_files()
    listener = _listen(settings)
    with contextlib.closing(listener):
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GRACE,
            timeout_keep_alive=15,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=64 * 1024,
            server_header=False,
            ws="none",
            http="h11",
        )
        server = _Server(config)

        def stop(number: int, frame: FrameType | None) -> None:
            """Before uvicorn listens to signals; and afterwards, when it raises them again."""
            server.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        if settings.token is None and not _is_local(settings.host):
            log.warning("anybody who reaches %s can use the service: set a token", settings.host)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}", flush=True)
        storage = settings.data if settings.queue is None else "Redis"
        log.info("serving at http://%s:%d; jobs in %s", shown, port, storage)
        server.run(sockets=[listener])
        if not server.started:
            raise UpscaleError("the service could not start; its log says why")
    log.info("stopped")


def _allow_files() -> None:
    """As many open files, so connections, as the system lets this process have."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)  # whoever connects now is served as soon as all is ready
    except OSError as error:
        raise UpscaleError(
            f"cannot listen at {settings.host}:{settings.port}: {error.strerror or error}; "
            "choose another --host or --port"
        ) from None
    return listener


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
