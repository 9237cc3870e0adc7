"""The queue between the threads that ask and the one that answers."""

from __future__ import annotations

import threading
from typing import Any, cast

from mllm_tailor.serving.jobs import Job, JobQueue, Route


def test_a_queue_closed_while_it_waits_for_company_ends_the_worker() -> None:
    """The job of a batch arrives, and is dropped in the moment in which others may join it."""
    queue, routes = JobQueue(), list[Route | None]()
    job = Job(Route("model", cast("Any", object()), "unconstrained"), cast("Any", None), background=True)
    worker = threading.Thread(target=lambda: routes.append(queue.wait_for_route(0.2)))
    worker.start()
    queue.put(job)
    queue.close()
    worker.join()
    assert routes == [None]
    assert job.result.cancelled()
    assert len(queue) == 0
