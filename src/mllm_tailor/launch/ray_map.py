"""Independent pieces of work as Ray tasks: candidates of a sweep, points of a curve, methods, folds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

from mllm_tailor.core.errors import RunError, TailorError
from mllm_tailor.core.failures import as_messages
from mllm_tailor.launch.ray_cluster import Here, connect, device_resources, enter, here
from mllm_tailor.run.mapper import Mapper

RETRIES = 3  # of a task whose worker process or node ended; a run then continues from its checkpoint


def ray_mapper(address: str | None = None) -> Mapper:
    """A mapper whose pieces of work run side by side, one a device.

    Raises:
        RunError: when Ray is not installed or cannot be reached.
    """
    ray = connect(address)

    def map_on_ray(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        task = ray.remote(_call).options(max_retries=RETRIES, scheduling_strategy="SPREAD", **device_resources(ray))
        shared = ray.put(function)
        futures = [task.remote(shared, item, here()) for item in items]
        for future in futures:
            try:
                result, problem = ray.get(future)
            except ray.exceptions.RayError as error:
                raise RunError(f"a Ray task could not be done: {error} — the same command continues") from error
            if problem is not None:
                raise RunError(problem)
            yield result

    return map_on_ray


def _call(function: Callable[[Any], Any], item: Any, place: Here) -> tuple[Any, str | None]:
    """In a worker process: the result, or the message of what the user can fix.

    Ray shows what it prints where the command was started: on standard error, for standard output holds the results.
    """
    try:
        with as_messages(), redirect_stdout(sys.stderr):
            enter(place)
            return function(item), None
    except TailorError as error:
        return None, str(error)
