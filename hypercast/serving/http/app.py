"""The HTTP interface: one FastAPI application, behind uvicorn or as an ingress of Ray Serve (docs/serving.md).

=======================  ============================================================================================
``POST /v1/rank``        scores of a surface's candidates for a user, as of now
``POST /v1/events``      engagements, which the next question sees
``GET /v1/models``       what answers, and what a question must bring
``GET /healthz``         200 while the process answers (``/healthz/live``, the same); ``/healthz/ready``: and has caught
                         up with the stream that it follows, if it follows one
``GET /metrics``         for Prometheus
=======================  ============================================================================================
"""

import asyncio
import json
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from hypercast.errors import StoreError
from hypercast.serving.features.question import Question
from hypercast.serving.http.guard import Guard, read_tokens
from hypercast.serving.http.parsing import Refusal
from hypercast.serving.lanes.lane import LaneClosed
from hypercast.serving.lanes.ranking import Answer, Busy, NoExpert, TooEarly
from hypercast.serving.service import Service
from hypercast.store.ladder import Rung
from hypercast.store.status import Status
from streaming.errors import DataError

RUNGS = [rung.name for rung in sorted(Rung)]
STATUSES = [status.name for status in sorted(Status)]


def create_app(service: Service) -> FastAPI:
    """The application over ``service``, which the caller closes.

    Raises:
        ConfigError: the tokens that the configuration names cannot be read.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)  # its pages would load scripts from elsewhere
    metrics = service.metrics

    @app.post("/v1/rank")
    async def rank(request: Request) -> Response:
        arrived = time.monotonic()
        question = service.parser.question(await request.body())
        try:
            answer = await service.ranker.rank(question, arrived=arrived)
        except Busy:
            raise _unavailable("too many requests wait", "fewer at a time") from None
        except NoExpert:
            raise _unavailable(f"surface {question.surface!r} has no expert yet", "surfaces with one") from None
        except LaneClosed:
            raise _unavailable("the service ends", "another replica") from None
        except TooEarly as error:
            raise _unfit("time", str(error), "a later time", service.parser.example) from None
        except DataError as error:
            raise _unfit("body", str(error), "see error", service.parser.example) from None
        return _json(describe(question, answer))

    @app.post("/v1/events")
    async def events(request: Request) -> Response:
        taken = service.parser.events(await request.body())
        try:
            await asyncio.to_thread(service.intake.take, taken)
        except StoreError as error:
            metrics.events.labels("lost").inc(len(taken))
            raise _unavailable(str(error), "a disk with room") from None
        return _json({"taken": len(taken)})

    @app.get("/v1/models")
    async def models() -> Response:
        return _json(service.models())

    @app.get("/healthz")
    @app.get("/healthz/live")
    async def health() -> Response:
        return _json(service.health())

    @app.get("/healthz/ready")
    async def ready() -> Response:
        return _json(service.health(), status=200 if service.ready else 503)

    @app.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        told = {
            "error": str(error.detail),
            "where": f"{request.method[:16]} {request.url.path[:100]}",
            "allowed": "POST /v1/rank, POST /v1/events, GET /v1/models, GET /healthz, GET /metrics",
            "example": "GET /healthz",
        }
        return _json(told, status=error.status_code, headers=error.headers)

    @app.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> Response:
        metrics.refused.labels(error.reason).inc()
        headers = {"retry-after": "1"} if error.status == 503 else None
        return _json(error.told, status=error.status, headers=headers)

    app.add_middleware(Guard, config=service.config, tokens=read_tokens(service.config), metrics=metrics)
    return app


def describe(question: Question, answer: Answer) -> dict[str, Any]:
    """The body of an answer."""
    bundle, given, expert = answer.bundle, answer.given, answer.expert
    return {
        "request_id": question.request_id,
        "surface": question.surface,
        "time": question.time,
        "scores": {task: answer.probability_CT[:, place].tolist() for place, task in enumerate(answer.tasks)},
        "models": {
            "version": bundle.version,
            "snapshot": bundle.snapshot.name if bundle.snapshot is not None else None,
            "expert": {**bundle.versions["experts"][question.surface], "arm": expert.arm},
        },
        "embeddings": {
            "snapshot": given.snapshot,
            "status": [STATUSES[status] for status in given.status_C.tolist()],
            "rung": [RUNGS[rung] for rung in given.rung_C.tolist()],
            "age_seconds": (given.age_C / 1e6).tolist(),
        },
        "trace": {"foundation": answer.foundation, "milliseconds": answer.milliseconds},
    }


def _json(value: Any, *, status: int = 200, headers: Any = None) -> Response:
    body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _unavailable(error: str, allowed: str) -> Refusal:
    return Refusal(503, error, where="service", allowed=allowed, example="ask again in a second")


def _unfit(where: str, error: str, allowed: str, example: Any) -> Refusal:
    return Refusal(422, error, where=where, allowed=allowed, example=example)
