"""/docs: the OpenAPI document as a page of our own, which loads nothing but its style sheet from this server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response

PAGES = Path(__file__).parent / "pages"


def pages_router(app: FastAPI) -> APIRouter:
    """The page and its style sheet."""
    router = APIRouter(include_in_schema=False)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(PAGES), autoescape=True)
    template = environment.get_template("docs.html")
    style = (PAGES / "docs.css").read_text(encoding="utf-8")

    @router.get("/docs")
    async def docs() -> HTMLResponse:
        document = app.openapi()
        info = document["info"]
        return HTMLResponse(
            template.render(
                title=info["title"], description=info.get("description", ""), endpoints=list(_endpoints(document))
            )
        )

    @router.get("/docs.css")
    async def stylesheet() -> Response:
        return Response(style, media_type="text/css")

    return router


def _endpoints(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    schemas = document.get("components", {}).get("schemas", {})
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            body = content.get("application/json", {}).get("schema", {})
            body = schemas.get(str(body.get("$ref", "")).rpartition("/")[2], body)
            yield {
                "method": method.upper(),
                "path": path,
                "description": operation.get("description", operation.get("summary", "")),
                "fields": list(_fields(body)),
            }


def _fields(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, schema in body.get("properties", {}).items():
        kinds = [option.get("type") or "object" for option in schema.get("anyOf", [schema])]
        yield {
            "name": name,
            "type": " or ".join(kind for kind in kinds if kind != "null"),
            "needed": name in body.get("required", ()),
            "description": schema.get("description", ""),
        }
