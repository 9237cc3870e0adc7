"""What the review page asks its server for, and who may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.reviews import make_review
from starlette.testclient import TestClient

from mllm_tailor.core.errors import RunError
from mllm_tailor.data.reviews.desk import Desk
from mllm_tailor.review.app import make_app
from mllm_tailor.review.server import serve_review
from mllm_tailor.serving.settings import ServeSettings

ANNE = {"session": "tab-1", "reviewer": "Anne"}


def client_of(folder: Path, **settings: Any) -> TestClient:
    app = make_app(
        Desk(make_review(folder, 2)), ServeSettings(**settings), name="<b>receipts</b>", next_step="tailor run"
    )
    return TestClient(app, base_url="http://localhost", follow_redirects=False)


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(tmp_path)


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    assert "&lt;b&gt;receipts" in page.text and "http" not in page.text
    for name in ("review.js", "review.css"):
        assert client.get(f"/{name}").status_code == 200
    assert client.get("/..%2fapp.py").status_code == client.get("/app.py").status_code == 404


def test_a_document_is_decided_through_the_api(client: TestClient) -> None:
    shown = client.post("/api/take", json=ANNE).json()["document"]
    assert shown["left"][0] == "date" and shown["values"]["company"]["eye"] is False
    assert shown["candidates"] == {"total": ["9.80", "6.00"]} and shown["next_rows"] == {"items": 2}
    change = {**ANNE, "document": shown["document"], "seen": 0, "action": "correct", "field": "total"}
    refused = client.post("/api/change", json={**change, "after": "nine"})
    assert refused.status_code == 422 and "no amount" in refused.json()["problem"]
    done = client.post("/api/change", json={**change, "after": "9.80", "seconds": 2.5}).json()
    assert done["document"]["values"]["total"] | {"confidence": 0} == {
        "value": "9.80", "read": "9.00", "confidence": 0, "eye": True, "decided": "correct",
    }  # fmt: skip
    assert client.post("/api/change", json={**change, "after": "9.90"}).status_code == 409  # seen is old
    other = {**ANNE, "session": "tab-2"}
    assert client.post("/api/renew", json={**other, "document": shown["document"]}).status_code == 409
    assert client.post("/api/undo", json=ANNE).json()["document"]["values"]["total"]["value"] == "9.00"
    assert client.post("/api/undo", json=ANNE).status_code == 422


def test_images_are_drawn_by_number(client: TestClient) -> None:
    document = client.post("/api/take", json=ANNE).json()["document"]["document"]
    image = client.get(f"/image/{document}/0")
    assert image.headers["content-type"] == "image/jpeg" and image.content.startswith(b"\xff\xd8")
    assert client.get(f"/image/{document}/1").status_code == 422
    assert client.get(f"/image/{'0' * 64}/0").status_code == 422


def test_other_pages_and_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403  # DNS rebinding
    assert client.post("/api/take", json=ANNE, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/take", content=b"session=a", headers={"content-type": "text/plain"}).status_code == 422
    assert client.post("/api/take", content=b"x" * 1_000_001).status_code == 413
    assert client.post("/api/take", content=iter([b"{}"])).status_code == 411  # a body without an end


def test_a_page_open_to_others_needs_the_key_once(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="TAILOR_API_KEY"):
        serve_review(
            tmp_path / "missing.db",
            ServeSettings(host="0.0.0.0"),
            audit=0.05,
            name="x",
            next_step="",
            on_ready=lambda: None,
        )
    client = client_of(tmp_path, host="0.0.0.0", key="secret")
    assert client.get("/").status_code == 401
    assert client.get("/?key=wrong").status_code == 401
    first = client.get("/?key=secret")
    assert first.status_code == 303 and "HttpOnly" in first.headers["set-cookie"]
    assert client.get("/").status_code == 200
