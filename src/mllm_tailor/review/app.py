"""The page and what it asks for: the next document, its images, and a place for every decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, StringConstraints

from mllm_tailor.core.errors import DataError, TailorError
from mllm_tailor.data.reviews.desk import Change, Desk, Reviewer
from mllm_tailor.data.reviews.documents import Action
from mllm_tailor.data.reviews.store import ConflictError, Entry, ReviewStore
from mllm_tailor.review.guard import ReviewGuard
from mllm_tailor.review.images import jpeg_of
from mllm_tailor.review.view import document_view, form, progress_view
from mllm_tailor.serving.settings import ServeSettings

PAGES = Path(__file__).parent / "pages"
FILES = {"review.js": "text/javascript", "review.css": "text/css", "icon.svg": "image/svg+xml"}
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class Asked(BaseModel):
    """Who asks."""

    model_config = ConfigDict(extra="forbid")

    session: Word
    reviewer: Word

    @property
    def who(self) -> Reviewer:
        """The reviewer."""
        return Reviewer(self.session, self.reviewer)


class AskedChange(Asked):
    """A decision."""

    document: Word
    action: Action
    seen: int
    field: str = ""
    after: Any = None
    seconds: float = 0.0
    above: int | None = None


class AskedRenewal(Asked):
    """A sign of life."""

    document: Word


def make_app(desk: Desk, settings: ServeSettings, *, name: str, next_step: str) -> ReviewGuard:
    """The application over one review. `name` is that of the run; `next_step` the command that the page ends with."""
    app = FastAPI(title="tailor review", docs_url=None, redoc_url=None, openapi_url=None)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
    page = environment.get_template("review.html").render(name=name, next_step=next_step)

    @app.exception_handler(TailorError)
    async def refuse(_: Request, error: TailorError) -> JSONResponse:
        return JSONResponse({"problem": str(error)}, 409 if isinstance(error, ConflictError) else 422)

    app.include_router(page_router(page, desk.store))
    app.include_router(desk_router(desk))
    return ReviewGuard(app, settings)


def page_router(page: str, store: ReviewStore) -> APIRouter:
    """The page, its script and style sheet, and images of documents."""
    router = APIRouter()

    @router.get("/")
    def show() -> HTMLResponse:
        return HTMLResponse(page)

    @router.get("/{file}")
    def static(file: str) -> Response:
        if file not in FILES:
            return Response("not found\n", 404)
        return Response((PAGES / file).read_bytes(), media_type=FILES[file])

    @router.get("/image/{document}/{number}")
    def image(document: str, number: int) -> Response:
        media = store.entry(document).document.located(store.folder)
        if not 0 <= number < len(media):
            raise DataError(f"{document[:12]}: no page {number}")
        return Response(jpeg_of(media[number]), media_type="image/jpeg")

    return router


def desk_router(desk: Desk) -> APIRouter:
    """Documents and decisions, as JSON."""
    router, store = APIRouter(prefix="/api"), desk.store

    def answer(entry: Entry | None) -> dict[str, Any]:
        shown = None if entry is None else document_view(entry, store)
        return {"document": shown, "progress": progress_view(store)}

    @router.get("/form")
    def get_form() -> dict[str, Any]:
        return form(store)

    @router.post("/take")
    def take(asked: Asked) -> dict[str, Any]:
        return answer(desk.take(asked.who))

    @router.post("/renew")
    def renew(asked: AskedRenewal) -> dict[str, Any]:
        desk.renew(asked.who, asked.document)
        return {"progress": progress_view(store)}

    @router.post("/change")
    def change(asked: AskedChange) -> dict[str, Any]:
        wanted = Change(asked.document, asked.action, asked.seen, asked.field, asked.after, asked.seconds, asked.above)
        return answer(desk.change(asked.who, wanted))

    @router.post("/undo")
    def undo(asked: Asked) -> dict[str, Any]:
        entry = desk.undo(asked.who)
        if entry is None:
            raise DataError("nothing of yours to undo")
        return answer(entry)

    return router
