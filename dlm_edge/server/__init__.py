"""An OpenAI-compatible HTTP server for one bundle, and its page. Needs the extra `server`."""

from __future__ import annotations

from dlm_edge.server.app import Api, build_app
from dlm_edge.server.keys import Keys
from dlm_edge.server.options import ServerOptions
from dlm_edge.server.serving import HttpServer, listen

__all__ = ["Api", "HttpServer", "Keys", "ServerOptions", "build_app", "listen"]
