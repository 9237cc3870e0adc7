"""`tailor launch`: one recipe on several processes, here, on a Ray cluster, or as a file for a scheduler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mllm_tailor.commands.console import show, show_json
from mllm_tailor.commands.run import run_recipe, show_run
from mllm_tailor.core.errors import RecipeError, RunError, nearest
from mllm_tailor.core.io import write_atomic
from mllm_tailor.core.machine import cpu_count
from mllm_tailor.launch.kuberay import ray_job
from mllm_tailor.launch.plan import LaunchPlan
from mllm_tailor.launch.processes import run_by_torchrun
from mllm_tailor.launch.ray_map import ray_mapper
from mllm_tailor.launch.ray_train import run_on_ray
from mllm_tailor.launch.skypilot import sky_task
from mllm_tailor.launch.slurm import sbatch_script
from mllm_tailor.recipe import read_recipe
from mllm_tailor.run.execute import resolve_stages
from mllm_tailor.run.mapper import Mapper, in_turn
from mllm_tailor.run.options import Options
from mllm_tailor.run.publish import check_store, publish_run
from mllm_tailor.run.run_dir import RunFolder


@dataclass(frozen=True)
class Target:
    """A scheduler: how its file is made, called and submitted."""

    write: Callable[[LaunchPlan], str]
    suffix: str
    submit: tuple[str, ...]  # before the file


TARGETS = {
    "slurm": Target(sbatch_script, ".sbatch", ("sbatch",)),
    "k8s": Target(ray_job, ".rayjob.yaml", ("kubectl", "create", "-f")),
    "sky": Target(sky_task, ".sky.yaml", ("sky", "launch")),
}
ENGINES = ("local", "torchrun", "ray")


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line states beside the recipe."""

    engine: str
    least: int | None = None  # workers that Ray may go on with
    address: str | None = None  # of a Ray cluster
    meet: str | None = None  # host:port, where torchruns of several nodes meet
    out: Path | None = None  # of the scheduler's file
    submit: bool = False


def launch(
    path: Path, overrides: list[str], options: LaunchOptions, folder: Path | None, settings: Mapping[str, Any]
) -> None:
    """Run the recipe, or write the file that makes a scheduler run it. `settings` are fields of `LaunchPlan`.

    Raises:
        TailorError: for an unknown engine, what the recipe does not allow, or a run that failed.
    """
    if options.engine not in (*ENGINES, *TARGETS):
        raise RecipeError(
            f"--on: no engine is called `{options.engine}` — {nearest(options.engine, (*ENGINES, *TARGETS))}"
        )
    recipe, here = read_recipe(path, overrides), Path.cwd()
    file = path.resolve()
    name = str(file.relative_to(here) if file.is_relative_to(here) else file)
    cpus = {"torchrun": cpu_count(), "ray": settings["per_node"]}.get(options.engine, 8)
    plan = LaunchPlan(recipe.name, name, tuple(overrides), PurePosixPath(folder or here), **{"cpus": cpus, **settings})
    if options.engine in TARGETS:
        _write(plan, TARGETS[options.engine], options)
    elif options.engine == "local":
        words = [*overrides, f"train.processes={plan.processes}"]
        run_recipe(path, words, exclude_faulty=plan.exclude_faulty, fresh=False)
    elif options.engine == "torchrun":
        resolve_stages(recipe)
        run_by_torchrun(plan, options.meet)
        show_run(RunFolder(Path(recipe.output) / recipe.name))
    else:
        how = Options(exclude_faulty=plan.exclude_faulty)
        check_store(recipe.publish, recipe.name)
        run = run_on_ray(recipe, plan, least=options.least, address=options.address, options=how)
        publish_run(run, recipe.publish)
        show_run(run)


def mapper_of(engine: str | None, address: str | None = None) -> Mapper:
    """Where independent trainings take place: in this process, or on Ray.

    Raises:
        RecipeError: for anything else.
        RunError: without Ray.
    """
    if engine is None:
        return in_turn
    if engine != "ray":
        raise RecipeError(f"--on {engine}: independent trainings run here or on `ray`")
    return ray_mapper(address)


def _write(plan: LaunchPlan, target: Target, options: LaunchOptions) -> None:
    file = options.out or Path(f"{plan.label}{target.suffix}")
    text = target.write(plan)
    write_atomic(file, text)
    show(text.rstrip())
    show()
    words = [*target.submit, str(file)]
    if options.submit:
        _submit(words)
    else:
        show(f"Written to {file}. To submit it: {' '.join(words)}")
    show_json({"file": str(file), "submit": words, "submitted": options.submit})


def _submit(words: Sequence[str]) -> None:
    if shutil.which(words[0]) is None:
        raise RunError(f"{words[0]} is not installed here — submit the file where it is: {' '.join(words)}")
    if subprocess.run(words).returncode:
        raise RunError(f"`{' '.join(words)}` failed — its message is above")
