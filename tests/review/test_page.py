"""The review page in Chromium: keyboard alone, correct, confirm, undo, reload, two tabs, a phone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fixtures.browser import Browser, Tab
from fixtures.reviews import make_review

from mllm_tailor.data.reviews.desk import Desk
from mllm_tailor.data.reviews.labels import finished_fields
from mllm_tailor.data.reviews.store import ReviewStore
from mllm_tailor.review.app import make_app
from mllm_tailor.serving.settings import ServeSettings

FOCUS = "document.activeElement.dataset.path"
FILE = "document.getElementById('file').textContent"
pytestmark = pytest.mark.slow


@pytest.fixture
def review(tmp_path: Path) -> Iterator[tuple[str, ReviewStore]]:
    """The address of a page over three doubtful documents, and its store."""
    store = make_review(tmp_path, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(Desk(store), ServeSettings(port=port), name="receipts", next_step="tailor run RECIPE")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/", store
    server.should_exit = True
    thread.join()


def begin(browser: Browser, address: str, **size: int) -> Tab:
    """A tab in which a person has named themselves; storage is by origin, so each test begins without a name."""
    tab = browser.tab(address, **size)
    tab.wait("document.activeElement.id === 'name'")
    tab.type("Anne")
    tab.press("Enter")
    tab.wait(f"{FOCUS} === 'date'")
    return tab


def press_until(tab: Tab, key: str, path: str) -> None:
    tab.press(key)
    tab.wait(f"{FOCUS} === {path!r}")


def test_a_document_is_reviewed_with_the_keyboard_alone(browser: Browser, review: tuple[str, ReviewStore]) -> None:
    address, store = review
    tab = begin(browser, address)
    assert tab.run(FILE) == "r2.png"  # the least certain
    tab.wait("document.querySelector('.page img').naturalWidth > 0")
    assert "not found on the page" in tab.run("document.getElementById('state-date').textContent")
    assert tab.run("document.querySelectorAll('.box').length") == 0
    press_until(tab, "Enter", "total")  # confirms the date
    box = tab.run("JSON.stringify(document.querySelector('.box').getBoundingClientRect())")
    page = tab.run("JSON.stringify(document.querySelector('.page img').getBoundingClientRect())")
    box, page = json.loads(box), json.loads(page)
    assert abs((box["left"] - page["left"]) / page["width"] - 0.06) < 0.01  # thousandths of the page
    assert abs((box["bottom"] - page["top"]) / page["height"] - 0.27) < 0.01
    tab.press("ArrowDown")
    assert tab.run("document.activeElement.value") == "9.80"  # the next candidate
    tab.press("Escape")
    assert tab.run("document.activeElement.value") == "9.00"
    tab.run("document.activeElement.select()")
    tab.type("nine")
    tab.press("Enter")
    tab.wait("document.getElementById('problem').textContent.includes('no amount')")
    tab.press("Escape", "ArrowDown")
    press_until(tab, "Enter", "payment")  # corrects the total
    press_until(tab, "Tab", "items.1.name")
    press_until(tab, "shift+Tab", "payment")
    press_until(tab, "Enter", "items.1.name")
    press_until(tab, "alt+Enter", "items.2.name")  # a new row
    tab.type("JAM")
    press_until(tab, "Enter", "items")  # the cells of a row that was entered are not doubtful
    press_until(tab, "ctrl+ArrowUp", "items.2.price")
    press_until(tab, "ctrl+ArrowUp", "items.2.name")
    press_until(tab, "ctrl+ArrowUp", "items.1.price")
    press_until(tab, "alt+shift+Enter", "items.3.name")  # above this row
    press_until(tab, "ctrl+ArrowDown", "items.3.price")
    press_until(tab, "ctrl+ArrowDown", "items.1.name")
    press_until(tab, "ctrl+ArrowUp", "items.3.price")
    tab.press("alt+Backspace")
    tab.wait("document.querySelector('[data-path=\"items.3.name\"]') === null")
    tab.wait(f"{FOCUS} === 'items.1.name'")  # the next doubtful value
    press_until(tab, "ctrl+ArrowDown", "items.1.price")
    press_until(tab, "Enter", "items")
    press_until(tab, "ctrl+Enter", "items.1.name")  # not all is decided: the first open value has the focus
    press_until(tab, "Enter", "items")
    tab.press("Enter")
    tab.wait("document.activeElement.id === 'finish'")
    tab.press("Enter")
    tab.wait(f"{FILE} === 'r1.png'")
    (entry,) = store.entries("done")
    fields = finished_fields(entry, store)
    assert (fields["total"], fields["payment"]) == ("9.80", "cash")
    assert fields["items"][1:] == [{"name": "BUN", "price": "5.00"}, {"name": "JAM", "price": ""}]
    assert all(decision.reviewer == "Anne" for decision in entry.decisions)
    assert sum(decision.seconds for decision in entry.decisions) > 0

    tab.press("ctrl+z")  # back into the document before
    tab.wait(f"{FILE} === 'r2.png'")
    tab.press("ctrl+z")
    tab.wait(f"{FOCUS} === 'items'")
    assert store.entries("done") == []
    assert browser.problems() == []


def test_a_reload_and_a_second_tab(browser: Browser, review: tuple[str, ReviewStore]) -> None:
    address, store = review
    tab = begin(browser, address)
    press_until(tab, "Enter", "total")
    tab.run("document.activeElement.select()")
    tab.type("1.23")  # typed and not kept
    tab.reload()
    tab.wait(f"{FOCUS} === 'total' && document.activeElement.value === '1.23'")
    assert tab.run(FILE) == "r2.png" and store.progress().confirmed == 1
    second = browser.tab(address)
    second.wait(f"{FILE} === 'r1.png' && {FOCUS} === 'date'")  # the same person, another document
    third = browser.tab(address)
    third.wait(f"{FILE} === 'r0.png'")
    fourth = browser.tab(address)
    fourth.wait("!document.getElementById('end').hidden")
    second.press("alt+s")
    second.wait("!document.getElementById('end').hidden")
    assert store.progress().skipped == 1
    assert browser.problems() == []


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Browser, review: tuple[str, ReviewStore], tmp_path: Path
) -> None:
    address, store = review
    tab = begin(browser, address, width=390, height=844)
    assert tab.run("document.scrollingElement.scrollWidth") <= 390
    total = "document.querySelector('[data-path=total]').closest('.value')"
    tab.run(f"{total}.querySelector('.choices button:last-child').click()")
    tab.run("document.querySelector('[aria-label=\"Confirm total\"]').click()")  # by touch
    tab.wait("document.getElementById('state-total').textContent === 'corrected'")
    assert store.decisions()[-1].after == "6.00"
    tab.run("document.querySelector('#help summary').click()")
    assert tab.run("document.querySelector('#help dl').getBoundingClientRect().right") <= 390
    tab.screenshot(tmp_path / "phone.png")
    assert (tmp_path / "phone.png").stat().st_size > 5000
    assert browser.problems() == []
