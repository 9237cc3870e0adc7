"""`tailor verify RUN --url URL`: an endpoint beside the run, on the run's held-out samples."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.core.errors import RunError
from mllm_tailor.core.io import human_time
from mllm_tailor.core.optional import need
from mllm_tailor.core.terminal import Table
from mllm_tailor.reporting.tables import gain_table
from mllm_tailor.run.run_dir import open_run

SHOWN = 5  # differences
CLIENTS = 4  # documents sent at a time


def verify_url(
    path: Path, url: str, *, model: str | None, count: int | None, key_variable: str, price: str | None
) -> bool:
    """Send held-out samples to an endpoint; False when it is clearly worse than the run.

    Raises:
        RunError: when the run is not scored, the endpoint does not answer, or the price cannot be read.
    """
    need("httpx2", "serve", "`tailor verify --url`", RunError)
    from mllm_tailor.serving.openai_client import Endpoint
    from mllm_tailor.serving.verify_url import EndpointResult, Price, verify_endpoint

    cost = _price(price)
    folder = open_run(path)
    name = model or folder.recipe().name
    endpoint = Endpoint(url, name, os.environ.get(key_variable) or None)
    try:
        result: EndpointResult = verify_endpoint(folder, endpoint, count=count, clients=CLIENTS)
    finally:
        endpoint.close()
    title = f"{result.count} held-out samples: {name} at {url} beside the run"
    show(gain_table(result.gains, title, first="the run", second="the endpoint"))
    show(f"{result.same} of {result.count} replies are the same, letter for letter.")
    if result.differences:
        show(_differences(result))
    for cause in result.causes:
        show(("Likely cause: ", "bold"), cause)
    if result.left_out:
        show(f"The endpoint does not know {', '.join(result.left_out)}: left out of the requests.")
    show(
        f"Median time of a reply: {human_time(result.seconds[0])} in the run, {human_time(result.seconds[1])} there "
        f"({CLIENTS} at a time)."
    )
    per_thousand = Price(*cost).of(result.replies) if cost else None
    if per_thousand is not None:
        show(f"A thousand documents cost {per_thousand:.2f} at this price.")
    headline = next(iter(result.gains.values()))
    show_json(
        {
            "run": str(path),
            "url": url,
            "model": name,
            "samples": result.count,
            "same_replies": result.same,
            "difference": {metric: gain.row() for metric, gain in result.gains.items()},
            "differences": [asdict(difference) for difference in result.differences],
            "likely_causes": list(result.causes),
            "left_out": list(result.left_out),
            "seconds": {"run": result.seconds[0], "endpoint": result.seconds[1]},
            "cost_per_thousand": per_thousand,
        }
    )
    return not headline.worsened


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        read, written = (float(word) for word in text.split(","))
    except ValueError:
        raise RunError("--price: two numbers, of a million tokens read and written, such as 0.15,0.60") from None
    return read, written


def _differences(result: object) -> Table:
    from mllm_tailor.serving.verify_url import EndpointResult

    assert isinstance(result, EndpointResult)
    table = Table("The first token that differs", "sample", "token", "the run", "the endpoint", "its probability")
    for difference in result.differences[:SHOWN]:
        chance = "" if difference.probability is None else f"{difference.probability:.3f}"
        table.add_row(difference.id, str(difference.token), difference.run, difference.endpoint, chance)
    return table
