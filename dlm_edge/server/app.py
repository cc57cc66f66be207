"""The routes, and the order of what stands around them."""

from __future__ import annotations

from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dlm_edge.errors import UsageProblem
from dlm_edge.runtime import Engine
from dlm_edge.runtime.attention import POLICIES
from dlm_edge.runtime.resolving import resolve
from dlm_edge.runtime.settings import GenerateSettings
from dlm_edge.server.admission import Admission
from dlm_edge.server.body import BODY, Bodies
from dlm_edge.server.gate import Gate
from dlm_edge.server.keys import Keys
from dlm_edge.server.metrics import CONTENT_TYPE, Metrics
from dlm_edge.server.options import ServerOptions
from dlm_edge.server.refusals import Refusal, bad_request, internal
from dlm_edge.server.running import Generations
from dlm_edge.server.schema import read_chat, read_completion
from dlm_edge.server.streams import Generating

PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
MEDIA = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


class Api:
    """The routes of one model."""

    def __init__(self, engine: Engine, options: ServerOptions, created: int) -> None:
        self.engine, self.options = engine, options
        self.metrics = Metrics()
        self.generations = Generations(engine, self.metrics)
        self.page = {path: read_page(name) for path, name in PAGE.items()}
        self.model = describe(engine, options.model_name, created)
        handlers: dict[Any, Any] = {Refusal: refused, HTTPException: no_route, Exception: failed}
        routes = Starlette(routes=self.routes(), exception_handlers=handlers)
        routes.router.redirect_slashes = False
        self.admission = Admission(Bodies(routes, options), options, self.metrics, engine.stats().parallel)

    def routes(self) -> list[Route]:
        pages = [Route(path, self.get_page, methods=["GET"]) for path in PAGE]
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.get_metrics, methods=["GET"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name}", self.one_model, methods=["GET"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completion, methods=["POST"]),
            *pages,
        ]

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def get_metrics(self, request: Request) -> Response:
        text = self.metrics.text(self.engine.stats(), self.admission.in_flight)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.model]})

    async def one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self.options.model_name:
            message = f"there is no such model here; there is {self.options.model_name}"
            raise Refusal(404, message, code="model_not_found", param="model")
        return JSONResponse(self.model)

    async def chat(self, request: Request) -> Response:
        asked = read_chat(body_of(request), self.options.model_name)
        if not self.engine.has_chat_template:
            raise bad_request("this bundle has no chat template: use /v1/completions", "messages", "E-TEMPLATE")
        return Generating(self.generations, asked, self.options.model_name, self.options.keep_alive_s)

    async def completion(self, request: Request) -> Response:
        asked = read_completion(body_of(request), self.options.model_name)
        return Generating(self.generations, asked, self.options.model_name, self.options.keep_alive_s)

    async def get_page(self, request: Request) -> Response:
        return self.page[request.url.path]


def build_app(api: Api, keys: Keys | None) -> ASGIApp:
    """Gate (headers, Host, Origin, key), admission, bodies, routes: in this order for every path there is or is not."""
    return Gate(api.admission, api.options, keys, api.metrics)


def body_of(request: Request) -> Any:
    if BODY not in request.scope:
        raise bad_request("a JSON body is needed")
    return request.scope[BODY]


def describe(engine: Engine, name: str, created: int) -> dict[str, Any]:
    """OpenAI's model object, and under `dlm` what a client may ask of this one."""
    spec = engine.spec
    about = {
        "family": spec.family,
        "context": spec.max_positions,
        "attention_pattern": spec.conventions.attention,
        "block_length": spec.conventions.block_length,
        "has_chat_template": engine.has_chat_template,
        "attention": [policy for policy in POLICIES if is_possible(engine, policy)],
    }
    return {"id": name, "object": "model", "created": created, "owned_by": "local", "dlm": about}


def is_possible(engine: Engine, policy: str) -> bool:
    settings = GenerateSettings(attention=policy)
    try:
        resolve(settings, engine.spec.conventions, room=engine.spec.max_positions, layout=engine.parts.cache_layout)
    except UsageProblem:
        return False
    return True


def read_page(name: str) -> Response:
    data = (resources.files("dlm_edge.server") / "page" / name).read_bytes()
    return Response(data, media_type=MEDIA[name.rpartition(".")[2]])


async def refused(request: Request, error: Refusal) -> Response:
    return error.response()


async def no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        return Refusal(
            405, "this path has other methods", code="method_not_allowed", headers=dict(error.headers or {})
        ).response()
    return Refusal(error.status_code, "there is nothing here", code="not_found").response()


async def failed(request: Request, error: Exception) -> Response:
    """The gate logs it."""
    return internal().response()
