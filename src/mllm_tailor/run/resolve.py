"""What a recipe leaves to the data, such as the classes to tell apart, is written into it before a run begins.

So the recipe a run keeps says everything: its predictions need no training data.
"""

from __future__ import annotations

from collections.abc import Iterator

from mllm_tailor.core.sample import Sample
from mllm_tailor.data import read_samples
from mllm_tailor.recipe import Recipe
from mllm_tailor.tasks import DataDependentTask, make_task


def resolve_from_data(recipe: Recipe) -> Recipe:
    """The recipe with what its task takes from the labelled samples, those held out included.

    A class that only held-out samples have is thus a class: they stay in the score, and the ledger names them.
    """
    task = make_task(recipe)
    if not isinstance(task, DataDependentTask):
        return recipe
    return recipe.model_copy(update={"task": {recipe.task_name: task.settled(_samples(recipe)).written()}})


def _samples(recipe: Recipe) -> Iterator[Sample]:
    """Every sample this task is asked about; rows that cannot be read are reported when the data is examined."""
    data = recipe.data
    places = [(data.train, data.layout), (data.held_out.folder, None)]
    places += [(source.train, source.layout) for source in data.sources if source.task is None]
    for place, layout in places:
        if place is not None:
            yield from read_samples(place, layout, on_issue=lambda fault: None).samples
