"""The report: its numbers, its sentences, and that strings from documents stay text, in Chromium too."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fixtures.browser import Browser, Tab
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from mllm_tailor.core.sample import Prediction
from mllm_tailor.reporting import Cost, Curves, LedgerLine, ReportData, choose, render, write_report
from mllm_tailor.reporting.axes import axis
from mllm_tailor.reporting.charts import curve, scale_top, thin
from mllm_tailor.reporting.sentences import form_or_reading, headline, number, signed, verdict
from mllm_tailor.reporting.tables import gain_table, score_table
from mllm_tailor.reporting.wrong_values import find_wrong_values, scores_csv
from mllm_tailor.scoring import (
    Interval,
    MetricScore,
    Ratios,
    Scores,
    compare,
    constant_baseline,
    form_and_reading,
    gain,
    score,
    seen_groups,
)

HOSTILE = '<script>document.title="owned"</script>\x1b[31m\u202e'
FIELDS = ("company", "total")
METRICS = ("fuzzy", "exact", "f1", "parse_rate", "absent_rate")
COUNT = 12


def predictions(rights: int, problem: str | None = None) -> list[Prediction]:
    """Replies of which the first `rights` are right."""
    return [
        Prediction(f"r{i}", HOSTILE, {"company": f"SHOP {i}", "total": f"{i}.00" if i < rights else HOSTILE})
        if i < rights or problem is None
        else Prediction(f"r{i}", HOSTILE, problem=problem)
        for i in range(COUNT)
    ]


def example(base: int = 3, tuned: int = 10) -> ReportData:
    labels = [{"company": f"SHOP {i}", "total": f"{i}.00"} for i in range(COUNT)]
    groups = [f"group {i % 4}" for i in range(COUNT)]
    replies = {
        "base_unconstrained": predictions(base, "no JSON object in the reply"),
        "base_constrained": predictions(base),
        "tuned_unconstrained": predictions(tuned, HOSTILE),
        "tuned_constrained": predictions(tuned),
        "baseline_constant": [Prediction("", "", fields) for fields in constant_baseline(labels[:3], COUNT, FIELDS)],
    }
    systems = {name: score(labels, found, METRICS, FIELDS) for name, found in replies.items()}
    systems["baseline_constant"] = replace(systems["baseline_constant"], ids=systems["base_unconstrained"].ids)
    picture = io.BytesIO()
    Image.new("RGB", (40, 60), "white").save(picture, "JPEG")
    return ReportData(
        name=f"receipts {HOSTILE}",
        made="21 November 2026",
        facts={"model": HOSTILE},
        metric="fuzzy",
        mode="constrained",
        systems=systems,
        gains=compare(systems["base_constrained"], systems["tuned_constrained"], groups=groups),
        labels=labels,
        predictions=replies,
        sample_groups=groups,
        groups=seen_groups(["group 0", "group 1"], groups),
        images={f"r{i}": picture.getvalue() for i in range(COUNT)},
        curves=Curves([(1, 2.0), (2, 1.0), (3, 0.5)], [(2, 50.0), (3, 75.5)], 3),
        ledger=[LedgerLine("trained on", 557), LedgerLine("excluded", 4, HOSTILE)],
        costs=[Cost("peak memory", "2.1 GiB", "2.4 GiB")],
        recipe=f"name: {HOSTILE}",
        environment={"python": HOSTILE},
    )


class Page(HTMLParser):
    """Tags and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example()


@pytest.fixture(scope="module")
def page(data: ReportData) -> Page:
    return Page(render(data))


def test_the_real_numbers_are_in_the_report(data: ReportData, page: Page) -> None:
    gain = data.gain
    assert f"rose from {number(gain.base.value)} to {number(gain.tuned.value)}" in page.text
    assert f"{number(gain.difference.low)} to {number(gain.difference.high)}" in page.text
    for name, scores in data.systems.items():
        assert number(scores["fuzzy"].value) in page.text, name
    for found in (*data.gains.values(), *data.gain.by_field.values()):
        assert number(found.tuned.value) in page.text
    for shown in ("2.1 GiB", "2.4 GiB", "557", "trained on", "groups never seen in training", "step 3, kept"):
        assert shown in page.text
    assert "Of 24 values the tuned model writes 22 exactly as labelled" in page.text


def test_strings_from_documents_stay_text(page: Page) -> None:
    assert "script" not in page.tags
    assert '<script>document.title="owned"</script>' in page.text
    assert "\x1b" not in page.text and "\u202e" not in page.text


def test_the_page_needs_nothing_else(data: ReportData, page: Page) -> None:
    html = render(data)
    assert page.sources and all(
        source.startswith(("data:image/jpeg;base64,", "data:text/csv", "#")) for source in page.sources
    )
    assert "default-src 'none'" in html and "@import" not in html and "url(" not in html
    assert not {"link", "iframe", "object", "embed", "form", "script"} & set(page.tags)


def test_a_report_without_the_optional_parts_is_whole(data: ReportData) -> None:
    small = replace(
        data, sample_groups=(), groups={}, images={}, curves=Curves(), ledger=(), costs=(),
        systems={name: data.systems[name] for name in ("base_constrained", "tuned_constrained")},
    )  # fmt: skip
    text = Page(render(small)).text
    assert "Field by field" in text and "Training curves" not in text and "Seen and unseen groups" not in text


def test_a_loss_is_called_a_loss() -> None:
    text = Page(render(example(base=10, tuned=3))).text
    assert "score fell from" in text
    assert "the tuned model is worse than the base model" in text


def test_no_gain_is_called_no_gain() -> None:
    text = Page(render(example(base=5, tuned=5))).text
    assert "stayed at" in text and "neither a gain nor a loss" in text


def test_a_model_below_a_baseline_is_not_shown_to_read() -> None:
    data = example(base=0, tuned=1)
    systems = dict(data.systems)
    systems["baseline_constant"] = replace(
        systems["tuned_unconstrained"], metrics=example(tuned=10).systems["tuned_unconstrained"].metrics
    )
    assert "it is not shown that the model reads" in Page(render(replace(data, systems=systems))).text


def test_form_is_told_apart_from_reading(data: ReportData) -> None:
    systems = data.systems
    unconstrained, constrained = (
        (systems[f"base_{mode}"], systems[f"tuned_{mode}"]) for mode in ("unconstrained", "constrained")
    )
    split = form_and_reading(unconstrained, constrained, "parse_rate")
    assert split.form.value > 50 and split.reading.value == 0
    assert split.total.value == pytest.approx(split.form.value + split.reading.value)
    sentence = form_or_reading(split)
    assert "No change in reading is shown" in sentence and "form of the replies improved" in sentence


# --- sentences follow from the figures

SCORE = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])


def scores_of(values: Sequence[float], better: str) -> Scores:
    ones = (1.0,) * len(values)
    metric = MetricScore(Ratios(tuple(values), ones), {}, better)  # type: ignore[arg-type]
    return Scores(tuple(map(str, range(len(values)))), {"m": metric})


@pytest.mark.slow
@given(
    st.lists(st.tuples(SCORE, SCORE, SCORE, SCORE), min_size=1, max_size=25),
    st.sampled_from(["higher", "lower"]),
    st.integers(1, 25),
    st.sampled_from([-1.0, 0.0, 0.3, 1.0]),
)
def test_sentences_follow_from_the_figures(
    rows: list[tuple[float, ...]], better: str, groups: int, pull: float
) -> None:
    """Over random base and tuned scores, some pulled towards a gain (1) or a loss (-1)."""
    moved = [(b, _pull(t, pull), c, _pull(u, pull)) for b, t, c, u in rows]
    systems = [scores_of([row[side] for row in moved], better) for side in range(4)]
    names = [f"g{index % groups}" for index in range(len(rows))]
    result = gain(systems[0], systems[1], "m", groups=names)
    sentence = verdict(result, "group")
    units = min(groups, len(rows))
    assert ("needs at least 3" in sentence) == (units < 3)
    assert ("is better" in sentence) == result.improved
    assert ("is worse" in sentence) == result.worsened
    assert ("neither a gain nor a loss" in sentence) == (units >= 3 and not result.difference.clear)
    if "is better" in sentence:
        assert (result.difference.value > 0) == (better == "higher")
        assert ("above zero" in sentence) == (better == "higher")

    split = form_and_reading((systems[0], systems[1]), (systems[2], systems[3]), "m", groups=names)
    sentence = form_or_reading(split)
    assert split.total.value == pytest.approx(split.reading.value + split.form.value, abs=1e-6)
    for words, interval in (("reading", split.reading), ("the form of the replies", split.form)):
        assert (f"{words} improved" in sentence) == (interval.clear and interval.value > 0)
        assert (f"{words} got worse" in sentence) == (interval.clear and interval.value < 0)
        assert (f"o change in {words} is shown" in sentence) == (interval.known and not interval.clear)


def _pull(value: float, pull: float) -> float:
    return value + abs(pull) * ((1.0 if pull > 0 else 0.0) - value)


@pytest.mark.slow
@given(st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=15), st.booleans())
def test_the_headline_follows_from_the_figures(rows: list[tuple[float, float]], grouped: bool) -> None:
    base, tuned = (scores_of([row[side] for row in rows], "higher") for side in (0, 1))
    groups = ["a"] * len(rows) if grouped else []
    result = gain(base, tuned, "m", groups=groups or None)
    report = replace(example(), metric="m", gains={"m": result}, sample_groups=groups)
    sentence = headline(report)
    change = round(result.difference.value, 1)
    assert ("rose" in sentence) == (change > 0) and ("fell" in sentence) == (change < 0)
    assert ("stayed" in sentence) == (change == 0)
    assert ("too few" in sentence) == (not result.difference.known)
    few = len(rows) < 10 and all(value in (0, 1) for row in rows for value in row)
    assert (f" of {len(rows)}" in sentence) == few
    assert "nan" not in sentence


def test_few_samples_are_shown_as_counts() -> None:
    result = gain(scores_of([0, 0, 1, 0], "higher"), scores_of([1, 1, 1, 0], "higher"), "m")
    stream = io.StringIO()
    Console(file=stream, width=80).print(gain_table({"m": result}, "few"))
    assert "1 of 4" in stream.getvalue() and "3 of 4" in stream.getvalue()
    stream = io.StringIO()
    Console(file=stream, width=80).print(score_table({"base": scores_of([0, 0, 1, 0], "higher")}, "few"))
    assert "1 of 4" in stream.getvalue() and "25.0" not in stream.getvalue()


def test_a_report_of_few_samples_has_counts_for_percentages(data: ReportData) -> None:
    """Whatever is right or wrong: base, tuned and the baselines, over all samples and in subsets."""
    few = range(4)
    systems = {name: scores.subset(few) for name, scores in data.systems.items()}
    systems["baseline_nearest"] = systems["base_constrained"]
    shown = replace(
        data,
        metric="exact",
        systems=systems,
        gains=compare(systems["base_constrained"], systems["tuned_constrained"]),
        labels=data.labels[:4],
        predictions={name: rows[:4] for name, rows in data.predictions.items()},
        questions=(),
        sample_groups=(),
        groups={"seen": [0, 1, 2]},
    )
    fields = shown.gain.by_field
    assert all(gain.right is not None for gain in fields.values()) and fields
    text = Page(render(replace(shown, gains={"exact": fields["total"]}, metric="exact"))).text
    before, after = fields["total"].right or (0, 0)
    assert f"{before} of 4" in text and f"{after} of 4" in text


def test_tables_fit_eighty_columns(data: ReportData) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=False)
    values = {f"baseline_{name}": data.systems["base_constrained"] for name in ("constant", "nearest", "majority")}
    console.print(score_table(dict(data.systems) | values, "all systems"))
    long_names = {"normalised_exact": data.gain, "character_errors": data.gain}
    console.print(gain_table(dict(data.gains) | long_names, "gains"))
    assert max(len(line.rstrip()) for line in stream.getvalue().splitlines()) <= 80


def test_cases_are_the_worst_and_the_most_improved_and_none_twice(data: ReportData) -> None:
    base, tuned = data.systems["base_constrained"], data.systems["tuned_constrained"]
    chosen = choose(base, tuned, "fuzzy", shown=4)
    assert chosen["worst"] == [10, 11]
    assert len(chosen["best"]) == 4 and set(chosen["best"]) <= set(range(3, 10))
    assert choose(tuned, tuned, "fuzzy")["best"] == []


def test_numbers_are_written_one_way() -> None:
    assert [number(value) for value in (-0.01, 99.96, -3.25)] == ["0.0", "100.0", "−3.2"]
    assert [signed(value) for value in (0.04, 2, -2)] == ["0.0", "+2.0", "−2.0"]


def test_a_long_curve_is_averaged_not_cut() -> None:
    points = [(step, float(step % 2)) for step in range(1000)]
    shown = thin(points, most=100)
    assert len(shown) == 100 and {value for _, value in shown} == {0.5}
    assert "<polyline" in curve([(1, 1.0)], "a single step") and "nan" not in curve([(1, 1.0)], "a single step")


def test_the_terminal_shows_the_same_numbers_and_no_escapes(data: ReportData) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=140, force_terminal=False)
    console.print(gain_table(data.gains, f"[red]{HOSTILE}"))
    console.print(gain_table(data.gain.by_field, "by field"))
    console.print(score_table(data.systems, "all systems"))
    text = stream.getvalue()
    assert "[red]<script>" in text and "\x1b" not in text and "\u202e" not in text
    assert f"{data.gain.tuned.value:.1f}" in text and f"{data.gain.difference.value:+.1f}" in text
    assert "baseline constant" in text and "95 % interval" in text


# --- every wrong value, downloads, contents, axes


def csv_rows(uri: str) -> list[list[str]]:
    text = base64.b64decode(uri.partition("base64,")[2]).decode("utf-8-sig")
    return list(csv.reader(io.StringIO(text)))


def test_every_wrong_value_is_listed_the_most_confident_first(data: ReportData) -> None:
    replies = [
        replace(prediction, confidence={"total": index / 100})
        for index, prediction in enumerate(data.predictions["tuned_constrained"])
    ]
    shown = replace(data, predictions=dict(data.predictions) | {"tuned_constrained": replies})
    wrong = find_wrong_values(shown)
    expected = {
        (prediction.id, name)
        for label, prediction in zip(data.labels, replies, strict=True)
        for name, value in label.items()
        if prediction.fields.get(name) != value
    }
    assert {(row.id, row.field) for row in wrong.rows} == expected and len(wrong.rows) == len(expected)
    assert [row.confidence for row in wrong.rows] == [0.11, 0.10]
    page = Page(render(shown))
    assert f"Every wrong value ({len(expected)})" in page.text and "0.11" in page.text
    assert sum(choice.count for choice in wrong.fields) == sum(choice.count for choice in wrong.kinds) == len(expected)
    for choice in wrong.kinds:
        assert (
            f'#wrong:has(#kind{choice.index}:checked) tbody tr:not([data-kind="{choice.index}"])' in wrong.filter_style
        )


def test_every_wrong_value_opens_the_image_of_its_sample() -> None:
    data = example(tuned=1)
    html = render(replace(data, images={name: jpeg for name, jpeg in data.images.items() if name != "r11"}))
    opened = re.findall(r'class="look" popovertarget="([^"]+)"', html)
    assert len(opened) == len(find_wrong_values(data).rows) - 1  # all but r11
    assert any(key.startswith("image-wrong-") for key in opened) and any("image-worst-" in key for key in opened)
    assert all(html.count(f'id="{key}"') == 1 for key in opened)


def test_downloads_hold_all_values_and_no_formulas(data: ReportData) -> None:
    evil = [replace(p, fields={"company": "=1+1", "total": "-5.00"}) for p in data.predictions["tuned_constrained"]]
    shown = replace(data, predictions=dict(data.predictions) | {"tuned_constrained": evil})
    head, *rows = csv_rows(find_wrong_values(shown).csv)
    assert head == ["sample", "field", "kind of error", "confidence", "label", "tuned", "base"]
    assert {row[5] for row in rows if row[1] == "company"} == {"'=1+1"}
    assert {row[5] for row in rows if row[1] == "total"} == {"-5.00"}
    values = {tuple(row[:3]): row[4] for row in csv_rows(scores_csv(data))[1:]}
    assert float(values["tuned_constrained", "fuzzy", ""]) == pytest.approx(data.gain.tuned.value, abs=1e-3)
    assert ("base_constrained", "exact", "total") in values


def test_every_entry_of_the_contents_leads_somewhere(data: ReportData) -> None:
    html = render(data)
    targets = re.findall(r'href="#([^"]+)"', html)
    assert len(targets) > 8 and all(html.count(f'id="{target}"') == 1 for target in targets)
    for popover in re.findall(r'popovertarget="([^"]+)"', html):
        assert html.count(f'id="{popover}"') == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_axes_hold_the_values_and_end_where_the_metric_ends(values: list[float]) -> None:
    ticks = axis(values, 0.0, 100.0)
    assert ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 8
    assert 0 <= ticks[0] <= min(values) + 1e-6 and max(values) - 1e-6 <= ticks[-1] <= 100


def test_the_dev_curve_ends_at_a_hundred_and_rates_beyond_it_have_room() -> None:
    high = curve([(1, 96.0), (2, 99.5)], "dev", bounds=(0, 100))
    assert ">100</text>" in high and ">105" not in high and ">102" not in high
    assert scale_top([Interval(150.0, 120.0, 190.0)]) == 200
    assert scale_top([Interval(50.0, 20.0, 80.0)]) == 100


FOCUSED = """(() => { const at = document.activeElement;
  return at === document.body ? null : [...document.querySelectorAll('*')].indexOf(at) })()"""
# Links, buttons, one of each set of choices, and tables that are wider than the page (Chromium stops at these).
OPERABLE = """[...document.querySelectorAll('*')].filter(
  item => item.checkVisibility() && (item.matches('a[href], button, summary, input:not([type=radio]), input:checked') ||
    item.scrollWidth > item.clientWidth && getComputedStyle(item).overflowX === 'auto')
).map(item => [...document.querySelectorAll('*')].indexOf(item))"""
ROWS = """[...document.querySelectorAll('#wrong tbody tr')].filter(row => row.checkVisibility()).length"""


def tab_order(tab: Tab) -> list[int]:
    """Elements, by their position in the document, that the tab key reaches before it leaves the page."""
    reached: list[int] = []
    tab.run("document.activeElement.blur(), window.getSelection().removeAllRanges()")
    tab.press("Tab")
    while (at := tab.run(FOCUSED)) is not None and at not in reached[:1]:
        reached.append(at)
        assert len(reached) < 1000
        tab.press("Tab")
    return reached


@pytest.mark.slow
def test_the_page_works_without_a_mouse(data: ReportData, browser: Browser, tmp_path: Path) -> None:
    """Keys alone, on a phone's width: everything is reached in order, lists open and are filtered, images enlarge."""
    first, *rest = data.predictions["tuned_constrained"]  # wrong values of two fields
    first = replace(first, fields={**first.fields, "company": "another"})
    data = replace(data, predictions={**data.predictions, "tuned_constrained": [first, *rest]})
    write_report(data, tmp_path / "page.html")
    tab = browser.tab((tmp_path / "page.html").as_uri(), width=390, height=900)
    tab.wait("document.readyState === 'complete'")
    assert tab.run("document.documentElement.scrollWidth") <= 390  # nothing is wider but what scrolls by itself

    assert tab_order(tab) == tab.run(OPERABLE)
    assert tab.run(ROWS) == 0
    tab.run("document.querySelector('#wrong summary').focus()")
    tab.press("Enter")
    wrong = find_wrong_values(data)
    assert tab.run(ROWS) == len(wrong.rows)
    below = tab_order(tab)  # from the list on
    assert len(below) >= len(wrong.rows) + 4 and below == tab.run(OPERABLE)[-len(below) :]

    tab.run("document.querySelector('#wrong input').focus()")
    tab.press("ArrowDown")  # from `all` to the first field
    assert tab.run(ROWS) == wrong.fields[0].count < len(wrong.rows)
    tab.press("ArrowUp")
    assert tab.run(ROWS) == len(wrong.rows)

    tab.run("document.querySelector('#wrong button.look').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelectorAll(':popover-open').length") == 1
    tab.press("Escape")
    assert tab.run("document.querySelectorAll(':popover-open').length") == 0
    assert browser.problems() == []


@pytest.mark.slow
def test_chromium_shows_the_numbers_and_runs_nothing(data: ReportData, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    report = tmp_path / "report.html"
    write_report(data, report)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,3000"]
    command += [f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    page = Page(done.stdout)
    assert f"rose from {number(data.gain.base.value)} to {number(data.gain.tuned.value)}" in page.text
    assert "<title>owned</title>" not in done.stdout and "script" not in page.tags
    assert '<script>document.title="owned"</script>' in page.text
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 390 and len(shot.convert("RGB").getcolors(10**7) or []) > 20  # something was drawn


def test_line_items_have_rows_and_columns() -> None:
    label = [{"name": "tea", "price": "2.00"}, {"name": "bun", "price": "1.00"}]
    wrong = [{"name": "tea", "price": "2.00"}, {"name": "bun", "price": "9.00"}]
    data = example()
    names = ("fuzzy", "cell_f1", "cell_precision", "cell_recall", "row_f1", "row_precision", "row_recall")
    replies = {
        name: [Prediction(f"r{i}", "", {"items": items}) for i in range(COUNT)]
        for name, items in (("base_constrained", wrong), ("tuned_constrained", label[:1]))
    }
    systems = {name: score([{"items": label}] * COUNT, rows, names, ["items"]) for name, rows in replies.items()}
    data = replace(
        data,
        labels=[{"items": label}] * COUNT,
        systems=systems,
        predictions=replies,
        groups={},
        gains=compare(systems["base_constrained"], systems["tuned_constrained"]),
    )
    text = "".join(Page(render(data)).text.split())
    assert "wholerowsofitems1250.066.7+16.7" in text  # n, base, tuned, change
    assert re.search(r"cellsofitems\.price1250\.066\.7\+16\.7[^c]*?100\.050\.0", text)  # …, precision, recall
    assert "Line items" not in render(example())
