"""Every command of `tailor`, its arguments and its help. The work and the printing are those of `commands`."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, cast

import typer
from typer.exceptions import TyperException

from mllm_tailor import __version__
from mllm_tailor.cli.console import LEVELS, set_up_output, show_error
from mllm_tailor.cli.startup import import_at_start
from mllm_tailor.commands.console import use_json

NEGATIVE, FAILED = 1, 2  # exit status of a command whose answer is no, and of one that could not do its work
RETIRED_OPTIONS = {"--free": "--unconstrained"}

app = typer.Typer(
    name="tailor",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # commands in a help text are then never wrapped
    help="""Tune a multimodal model to your own documents, images, videos or recordings, and measure the gain.

    \b
    Start here:
      tailor demo                         everything, on drawn receipts, in minutes
      tailor init data/                   look at labelled data, write recipe.yaml
      tailor check recipe.yaml            problems, leaks and cost before training
      tailor run recipe.yaml              score the base, tune, score it, report
      tailor predict runs/NAME scans/     use the tuned model on new files

    \b
    Change a setting for one run:         tailor run recipe.yaml train.epochs=5
    Continue an interrupted run:          the same command again
    Use the tables in a program:          tailor compare runs/a runs/b --json
    Every method, metric and layout:      tailor methods
    """,
)

RecipeFile = Annotated[
    Path, typer.Argument(help="The recipe (a YAML file; `tailor init` writes one).", metavar="RECIPE")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings for this run only, such as train.epochs=5.", metavar="KEY=VALUE"),
]
ExcludeFaulty = Annotated[
    bool, typer.Option("--exclude-faulty", help="Leave faulty samples out; each has a line in the ledger.")
]
On = Annotated[
    str | None, typer.Option("--on", help="ray: side by side on a Ray cluster; default: here, in turn (docs/scale.md).")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="Of the Ray cluster; default: RAY_ADDRESS, or Ray is started on this machine."),
]


def _run_here(name: str | Path) -> Path:
    """A run folder; that at the URL of a store is copied first."""
    if "://" not in str(name):
        return Path(name)
    from mllm_tailor.core.remote import fetch_run

    return fetch_run(str(name))


RunPath = Annotated[Path, typer.Argument(help="A run folder, such as runs/receipts.", metavar="RUN")]
ReadRunPath = Annotated[
    Path,
    typer.Argument(help="A run folder, such as runs/receipts, or the URL of one.", metavar="RUN", parser=_run_here),
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mllm-tailor {__version__}")
        raise typer.Exit


Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Show debugging messages too.")
]
Quiet = Annotated[
    int,
    typer.Option("--quiet", "-q", count=True, show_default=False, help="Show warnings and errors only; -qq: errors."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = 0,
    log: Annotated[
        str | None,
        typer.Option(envvar="TAILOR_LOG", show_envvar=True, help="error, warning, info (default) or debug."),
    ] = None,
) -> None:
    follows = int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
    try:
        set_up_output(verbose - quiet - follows, log)  # of processes started together, rank 0 reports
    except ValueError as error:
        raise typer.BadParameter(f"no log level is called `{error}` — one of {', '.join(LEVELS)}") from None


def _check_settings(recipe: Path, overrides: list[str] | None) -> None:
    """Refuse a recipe with a wrong setting now: loading torch takes seconds more."""
    from mllm_tailor.recipe import read_recipe

    read_recipe(recipe, overrides or [])


def command(
    name: str | None = None, *, json: bool = False, module: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command that also takes --verbose and --quiet after its name, and --json if it prints a result.

    `module` of `commands` does its work and is imported first; default: that of the function's name.
    """
    added = {"verbose": (Verbose, 0), "quiet": (Quiet, 0)} | ({"as_json": (AsJson, False)} if json else {})

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def with_output(*, verbose: int = 0, quiet: int = 0, as_json: bool = False, **arguments: object) -> None:
            if verbose or quiet:
                set_up_output(verbose - quiet)
            use_json(as_json=as_json)
            if isinstance(file := arguments.get("recipe"), Path) and "overrides" in arguments:
                _check_settings(file, cast("list[str] | None", arguments["overrides"]))
            import_at_start(f"mllm_tailor.commands.{module or function.__name__}")
            function(**arguments)

        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        for option, (kind, default) in added.items():
            parameters.append(
                inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            )
        with_output.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_output.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name)(with_output)
        return function

    return register


@command(json=True)
def init(
    folder: Annotated[str, typer.Argument(help="Folder or file of labelled samples, or its URL.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing recipe.")] = False,
) -> None:
    """Look at labelled data and write a recipe for it."""
    from mllm_tailor.commands.init import write_recipe

    write_recipe(folder, out, force=force)


@command(json=True)
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    decode: Annotated[bool, typer.Option(help="Open every image, video and recording.")] = True,
    fit: Annotated[bool, typer.Option("--fit", help="Find settings whose training fits into memory.")] = False,
    memory: Annotated[
        str | None, typer.Option(help="With --fit: how much, such as 8GB; default: all that is free.")
    ] = None,
) -> None:
    """Find problems, leaks and the cost before training.

    Exit status 1: something must be fixed before `tailor run` accepts the recipe.
    """
    if fit:
        from mllm_tailor.commands.fit_memory import fit_recipe

        ready = fit_recipe(recipe, overrides or [], memory)
    else:
        from mllm_tailor.commands.check import check_recipe

        ready = check_recipe(recipe, overrides or [], decode=decode)
    if not ready:
        raise typer.Exit(NEGATIVE)


@command(json=True)
def audit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    readings: Annotated[
        list[Path] | None,
        typer.Option(
            "--readings",
            help="A run (its held-out readings), or predictions of samples that did not train the system; may be given "
            "several times. Default: the recipe's own run, if it is finished.",
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", help="Train on all folds but one and read it, for each fold. Resumable.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="With --folds: of training, in all.")] = 60.0,
    shown: Annotated[int, typer.Option("--show", min=1, help="Labels on the page.")] = 100,
    decode: Annotated[bool, typer.Option(help="Open every file, to find copies of one page.")] = True,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Take up decisions that the page has written, and audit nothing.")
    ] = None,
) -> None:
    """Find labels that may be wrong, and decide about them.

    Ranks all labels by what speaks against them: other labels, the text of the page, copies, readings of models
    that did not learn them. Label files are never changed: a run applies the decisions (data.corrections).
    """
    from mllm_tailor.commands.audit import apply_to_recipe, audit_recipe

    if apply is not None:
        apply_to_recipe(recipe, overrides or [], apply)
    else:
        audit_recipe(
            recipe,
            overrides or [],
            readings=readings or (),
            folds=folds,
            minutes=minutes,
            shown=shown,
            decode=decode,
        )


@command(json=True)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    exclude_faulty: ExcludeFaulty = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an existing run of this name aside and start anew.")
    ] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="The data changed meanwhile: redo what followed from them.")
    ] = False,
    reviews: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Also learn the finished documents of a review; may be given several times."),
    ] = None,
    on: On = None,
    address: Address = None,
) -> None:
    """Score the base model, tune it, score it again, report.

    Both are scored on the same held-out samples. The same command continues an interrupted run. --on: for the folds
    of a cross-validation; `tailor launch` trains one model on many processes.
    """
    from mllm_tailor.commands.launch import mapper_of
    from mllm_tailor.commands.run import run_recipe

    run_recipe(
        recipe,
        overrides or [],
        exclude_faulty=exclude_faulty,
        fresh=fresh,
        accept_changes=accept_changes,
        reviews=reviews or (),
        mapper=mapper_of(on, address),
    )


@command(json=True)
def launch(  # noqa: PLR0913 - an argument per option
    recipe: RecipeFile,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", help="local, torchrun, ray, slurm, k8s or sky.")] = "local",
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    per_node: Annotated[
        int | None, typer.Option("--per-node", min=1, help="Processes on each; default: one, or one a GPU.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node; 0: the training is on CPUs.")] = 0,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a node; default: all; ray: one a process; in files: 8.")
    ] = None,
    memory: Annotated[int, typer.Option(min=1, help="slurm, k8s, sky: GiB of a node.")] = 32,
    restarts: Annotated[int, typer.Option(min=0, help="How often all are started again after one has ended.")] = 3,
    least: Annotated[
        int | None, typer.Option("--least", min=1, help="ray: go on with so few processes while nodes are missing.")
    ] = None,
    address: Address = None,
    meet: Annotated[
        str | None, typer.Option("--meet", help="torchrun on several nodes: host:port of the first one.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where the recipe's paths begin on the nodes; default: here.")
    ] = None,
    volume: Annotated[
        str | None, typer.Option("--volume", help="k8s, sky: shared storage, mounted at the folder.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", help="k8s, sky: a container with this package.")] = None,
    accelerator: Annotated[str | None, typer.Option("--accelerator", help="sky: kind of GPU, such as H100.")] = None,
    hours: Annotated[int, typer.Option(min=1, help="slurm, k8s: time limit.")] = 24,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="slurm, k8s, sky: the file to write.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="slurm, k8s, sky: hand the file over at once.")] = False,
    exclude_faulty: ExcludeFaulty = False,
) -> None:
    """Run a recipe on many processes or machines.

    \b
      tailor launch recipe.yaml --on local --per-node 2          processes of this machine
      tailor launch recipe.yaml --on torchrun --gpus 8           one process a GPU, restarted when one ends
      tailor launch recipe.yaml --on ray --nodes 2 --gpus 8      workers of a Ray cluster (RAY_ADDRESS)
      tailor launch recipe.yaml --on slurm --nodes 2 --gpus 8    writes a batch script, shows it
      tailor launch recipe.yaml --on k8s ... | --on sky ...      writes a RayJob or a SkyPilot task, shows it

    All run what `tailor run` runs: one process runs the recipe, all train together, and the same command continues
    from the last checkpoint, also with another number of processes. Recipe, data and runs must lie where every node
    reaches them. docs/scale.md states what was tried and what was not.
    """
    from mllm_tailor.commands.launch import LaunchOptions
    from mllm_tailor.commands.launch import launch as start

    settings = {"nodes": nodes, "per_node": per_node or max(1, gpus), "gpus": gpus, "memory": memory}
    settings |= {"restarts": restarts, "hours": hours, "exclude_faulty": exclude_faulty}
    names = {"image": image, "volume": volume, "accelerator": accelerator}
    options = LaunchOptions(on, least, address, meet, out, submit)
    start(recipe, overrides or [], options, folder, {**settings, **names} | ({"cpus": cpus} if cpus else {}))


@command(json=True)
def predict(  # noqa: PLR0913 - an argument per option
    model_or_run: Annotated[str | None, typer.Argument(help="A run folder.", metavar="RUN")] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, or JSONL manifests of files and questions.", metavar="PATH..."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            help="Where to write one JSON row per sample: a file, by default predictions.jsonl; with --on ray a "
            "folder, by default predictions.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Use this untuned model (with --recipe).")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="The task to perform when there is no run.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Use the run's untuned base model.")] = False,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Do not constrain replies to the JSON schema.")
    ] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Find where on its page each value stands (`where` in its row).")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="builtin, or vllm: for many files, with an InternVL (docs/performance.md).")
    ] = "builtin",
    on: Annotated[
        str | None, typer.Option("--on", help="ray: by workers of a Ray cluster; default: here (docs/scale.md).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="With --on ray; default: one a GPU, or one a CPU.")
    ] = None,
    address: Address = None,
) -> None:
    """Read new files with a tuned (or untuned) model.

    One JSON row per file is written as it is made; the keys are described in docs/predictions.md. With --on ray rows
    come in parts, and the same command makes those that are missing. RUN, PATH and --out may be URLs of a store, such
    as s3://bucket/scans (docs/scale.md).
    """
    from mllm_tailor.commands.predict import check_engine, open_predictor, predict_paths, predict_paths_on_ray

    check_engine(on)
    inputs = list(paths or [])
    if model and model_or_run is not None:
        inputs.insert(0, model_or_run)  # with --model, every argument is a file
        model_or_run = None
    predictor = open_predictor(
        None if model_or_run is None else _run_here(model_or_run),
        model=model,
        recipe=recipe,
        base=base,
        unconstrained=unconstrained,
        boxes=boxes,
        engine=engine,
    )
    if on is None:
        predict_paths(predictor, inputs, out or "predictions.jsonl")
    else:
        predict_paths_on_ray(predictor, inputs, out or "predictions", workers, address)


@command(json=True, module="run")
def report(run_folder: RunPath) -> None:
    """Score a run's predictions again, write its report anew.

    No model is opened.
    """
    from mllm_tailor.commands.run import report_run

    report_run(run_folder)


@command(json=True)
def score(
    labels: Annotated[
        Path,
        typer.Argument(help="Labels: JSONL, JSON or CSV with an id in each row, or a run folder.", metavar="LABELS"),
    ],
    predictions: Annotated[
        list[Path],
        typer.Argument(help="Predictions: JSONL, JSON or CSV files, or run folders.", metavar="PREDICTIONS..."),
    ],
    metric: Annotated[list[str] | None, typer.Option("--metric", "-m", help="May be given several times.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Of a field, such as total=amount; may be given several times.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option("--group-by", help="Column of the labels whose values are not independent.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="Of a field with another name in the predictions, such as total='Grand Total'."),
    ] = None,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="The predictions have no ids: match them by the order of the labels.")
    ] = False,
) -> None:
    """Score predictions of any origin against labels.

    They may come from another trainer, a hosted service or an OCR pipeline. Each score has its interval; the
    first predictions are compared with all others.
    """
    from mllm_tailor.commands.score import score_predictions

    score_predictions(
        labels,
        predictions,
        metrics=metric or (),
        kinds=kind or (),
        group_by=group_by,
        columns=column or (),
        in_order=in_order,
    )


@command(json=True)
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder, or a file of predictions.", metavar="RUN")],
    second: Annotated[Path, typer.Argument(help="A run folder, or a file of predictions.", metavar="RUN")],
) -> None:
    """Compare two runs on the held-out samples they share.

    Each difference has its interval. One of the two may be a file of predictions of any origin.
    """
    from mllm_tailor.commands.compare import compare_runs

    compare_runs(first, second)


@command("compare-methods", json=True)
def compare_methods(
    recipe: RecipeFile,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "-m",
            help="Methods and objectives (cross_entropy, prefer, reward, distill), separated by commas: "
            "lora:rank=8:alpha=16, reward:loss=gspo, or both: full+prefer:loss=mpo.",
        ),
    ] = "lora,qlora,full",
    budget: Annotated[
        str,
        typer.Option("--budget", "-b", help="For each: 10m (minutes), 10 cpu minutes, 3e (epochs), 200 steps or 8GB."),
    ] = "10m",
    on: On = None,
    address: Address = None,
) -> None:
    """Tune by several methods and objectives at one budget.

    Prints one table and draws score against memory.
    """
    from mllm_tailor.commands.compare_methods import compare_methods
    from mllm_tailor.commands.launch import mapper_of

    compare_methods(recipe, overrides or [], methods, budget, mapper_of(on, address))


@command(json=True)
def curve(
    recipe: RecipeFile,
    overrides: Overrides = None,
    at: Annotated[
        str, typer.Option("--at", help="Numbers of labelled samples, separated by commas.")
    ] = "25,50,100,200",
    exclude_faulty: ExcludeFaulty = False,
    on: On = None,
    address: Address = None,
) -> None:
    """Estimate what more labelled samples would bring.

    Tunes with several numbers of samples and with all of them, and fits a learning curve.
    """
    from mllm_tailor.commands.curve import draw_curve, read_sizes
    from mllm_tailor.commands.launch import mapper_of

    mapper = mapper_of(on, address)
    draw_curve(recipe, overrides or [], read_sizes(at), exclude_faulty=exclude_faulty, mapper=mapper)


@command(json=True)
def sweep(
    recipe: RecipeFile,
    overrides: Overrides = None,
    learning_rates: Annotated[
        str, typer.Option("--learning-rates", "-l", help="Peak rates, separated by commas.")
    ] = "1e-4,3e-4,1e-3",
    ranks: Annotated[
        str, typer.Option("--ranks", "-r", help="Ranks, separated by commas; default: the recipe's.")
    ] = "",
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="Of one candidate in the last round: 10m, 3e or 200 steps.")
    ] = "3e",
    on: On = None,
    address: Address = None,
) -> None:
    """Search learning rate and rank on the dev split.

    By successive halving; held-out samples are not read.
    """
    from mllm_tailor.commands.launch import mapper_of
    from mllm_tailor.commands.sweep import sweep as search
    from mllm_tailor.core.errors import RecipeError

    try:
        rates = [float(word) for word in learning_rates.split(",")]
        widths = [int(word) for word in ranks.split(",") if word.strip()]
    except ValueError as error:
        raise RecipeError(f"{error} — separate numbers by commas: --learning-rates 1e-4,1e-3 --ranks 8,32") from None
    search(recipe, overrides or [], rates, widths, budget, mapper_of(on, address))


@command(json=True)
def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the drawn data and the run.")] = Path("runs"),
    seed: Annotated[int, typer.Option(help="Seed of the drawn shop chain.")] = 0,
    loop: Annotated[
        bool, typer.Option("--loop", help="Then read new receipts, correct the doubtful values, and tune again.")
    ] = False,
) -> None:
    """Show everything on drawn receipts, in minutes.

    Draws receipts of a shop chain the model has not seen, scores, tunes, scores again, and writes the report.
    """
    if loop:
        from mllm_tailor.commands.demo_loop import run_loop as run_demo
    else:
        from mllm_tailor.commands.demo import run_demo

    run_demo(out, overrides or [], seed)


@command()
def draw(
    name: Annotated[str, typer.Argument(help="receipts, receipts_with_items or kitchen.", metavar="SET")],
    folder: Annotated[Path, typer.Argument(help="A new folder for the drawn data.")],
    train: Annotated[int, typer.Option(min=1, help="Training samples.")] = 400,
    held_out: Annotated[int, typer.Option("--held-out", min=1, help="Held-out samples.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Draw labelled data: receipts, or a kitchen."""
    from mllm_tailor.commands.draw import draw_set

    draw_set(name, folder, train, held_out, seed)


@command()
def merge(
    run_folder: ReadRunPath,
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    count: Annotated[int, typer.Option("--samples", "-k", min=0, help="Held-out samples to score it on again.")] = 8,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: that of the run.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write the adapter alone, in PEFT's layout.")] = False,
    how: Annotated[
        str, typer.Option(help="For a base in 4 bits: dequantised (exact), unquantised or repacked (both cost).")
    ] = "dequantised",
) -> None:
    """Write the tuned model as a plain transformers folder.

    The adapter is merged into its base; a model card is added.
    """
    from mllm_tailor.commands.merge import export_adapter, merge_run

    if adapter:
        export_adapter(run_folder, out)
    else:
        merge_run(run_folder, out, count=count, dtype=dtype, how=how)


@command(module="merge")
def truncate(
    run_folder: ReadRunPath,
    rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="The rank to keep.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the plain LoRA adapter.")],
) -> None:
    """Cut a DyLoRA adapter to a lower rank, untrained."""
    from mllm_tailor.commands.merge import truncate_run

    truncate_run(run_folder, rank, out)


@command(json=True, module="verify_url")
def verify(
    run_folder: ReadRunPath,
    count: Annotated[
        int | None,
        typer.Option("--samples", "-k", min=1, help="Held-out samples to compare on; default: 4, with --url all."),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="An OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Its name there; default: the run's.")] = None,
    key: Annotated[str, typer.Option("--key", help="Environment variable that holds its key.")] = "OPENAI_API_KEY",
    price: Annotated[
        str | None, typer.Option("--price", help="Of a million tokens read and written, such as 0.15,0.60.")
    ] = None,
) -> None:
    """Check that all forms of the tuned model agree.

    Without --url also that the tuned model differs from its base. With --url the endpoint's replies to the held-out
    samples are scored beside the run's. Exit status 1: something is not as it should be.
    """
    if url is None:
        from mllm_tailor.commands.verify import verify_run

        agree = verify_run(run_folder, count or 4)
    else:
        from mllm_tailor.commands.verify_url import verify_url

        agree = verify_url(run_folder, url, model=model, count=count, key_variable=key, price=price)
    if not agree:
        raise typer.Exit(NEGATIVE)


@command()
def serve(
    run_folders: Annotated[
        list[Path],
        typer.Argument(help="Run folders or URLs; those over one base share it.", metavar="RUN...", parser=_run_here),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Host whose http(s) addresses may be fetched; may be given several times."),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Requests in the server at a time; further ones get 429.")
    ] = 64,
    files: Annotated[
        Path | None,
        typer.Option("--files", help="Folder that keeps uploaded files and batches; default: none is kept."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="builtin, or vllm: starts `vllm serve` behind this one.")
    ] = "builtin",
) -> None:
    """Serve runs behind OpenAI's endpoints.

    TAILOR_API_KEY is the key that clients must send. See docs/serving.md.
    """
    from mllm_tailor.commands.serve import serve_runs

    serve_runs(
        run_folders, host=host, port=port, allowed_hosts=allow_host or (), requests=requests, files=files, engine=engine
    )


@command(json=True)
def review(
    run_folder: RunPath,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders or manifests to read and review; none: go on.", metavar="PATH..."),
    ] = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", help="File of the decisions; default: corrections.db in the folder RUN-review."),
    ] = None,
    audit_share: Annotated[
        float, typer.Option("--audit", min=0, max=1, help="Share of the accepted documents that is looked at too.")
    ] = 0.05,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs TAILOR_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8001,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write labelled rows (.jsonl) or Label Studio's tasks (.json), and end."),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option("--import", help="Take over annotations of Label Studio (its JSON export), and end.")
    ] = None,
) -> None:
    """Confirm or correct what a run reads.

    A local page shows the values that are not accepted, the most doubtful document first. Decisions become
    training data: tailor run RECIPE --with RUN-review/corrections.db. See docs/review.md.
    """
    from mllm_tailor.commands.review import review_run

    review_run(
        run_folder,
        paths or (),
        database=db,
        audit=audit_share,
        host=host,
        port=port,
        export=export,
        annotations=annotations,
    )


@command(json=True)
def label(
    folder: Annotated[Path, typer.Argument(help="Folder of files without labels.", metavar="FOLDER")],
    teacher: Annotated[
        str, typer.Option("--teacher", "-t", help="A finished run, or an OpenAI-compatible endpoint (http://…/v1).")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the labels; default: FOLDER-labels.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="For an endpoint: the recipe whose task is labelled.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="For an endpoint: the model's name there.")] = None,
    key: Annotated[str, typer.Option("--key", help="Environment variable that holds its key.")] = "OPENAI_API_KEY",
    price: Annotated[
        str | None, typer.Option("--price", help="Of a million tokens read and written, such as 0.15,0.60.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=5, help="Of the second reading, which must agree with the first.")
    ] = 0.7,
) -> None:
    """Let a larger model draft labels of unlabelled files.

    A file gets a label when two readings of it agree and, where the run promises it, its values are accepted.
    """
    from mllm_tailor.commands.label import LabelOptions, label_folder

    label_folder(
        folder,
        teacher,
        LabelOptions(out=out, recipe=recipe, model=model, key_variable=key, price=price, temperature=temperature),
    )


@command("next", json=True)
def next_files(
    run_folder: RunPath,
    paths: Annotated[list[str], typer.Argument(help="Unlabelled files, folders or manifests.", metavar="PATH...")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write the ranking; default: in the folder RUN-next.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-k", min=1, help="Rank only so many; default: all.")] = None,
) -> None:
    """Rank unlabelled files by what labelling them is worth.

    First come files that the model doubts and that are unlike the training files and each other.
    """
    from mllm_tailor.commands.next_files import rank_next

    rank_next(run_folder, paths, out, count)


@command()
def chat(
    model_or_run: Annotated[str, typer.Argument(help="A run folder, `embedded`, a model folder or a hub id.")],
    files: Annotated[list[str] | None, typer.Argument(help="Images, videos or recordings to ask about.")] = None,
) -> None:
    """Ask questions about files in the terminal."""
    from mllm_tailor.commands.chat import chat as talk

    talk(model_or_run, files or [])


@command()
def convert(
    source: Annotated[str, typer.Argument(help="An original InternVL checkpoint: a folder or a hub id.")],
    out: Annotated[Path, typer.Argument(help="Folder for the native checkpoint.")],
    revision: Annotated[str | None, typer.Option(help="Hub revision (a commit).")] = None,
) -> None:
    """Convert an original InternVL to transformers' layout.

    None of the checkpoint's own code is run.
    """
    from mllm_tailor.commands.convert import convert_checkpoint

    convert_checkpoint(source, out, revision)


@command(json=True, module="list")
def models() -> None:
    """List the model families and what each supports."""
    from mllm_tailor.commands.list import list_models

    list_models()


@command(json=True, module="list")
def methods() -> None:
    """List every method, optimizer, metric, task, layout."""
    from mllm_tailor.commands.list import list_words

    list_words()


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` name; every failure that is not ours is one message. Returns the exit status."""
    from mllm_tailor.core.errors import TailorError
    from mllm_tailor.core.failures import as_messages

    try:
        with as_messages():
            return int(app(list(arguments), prog_name="tailor", standalone_mode=False) or 0)
    except TyperException as error:
        return _show_usage_error(error)
    except TailorError as error:
        show_error(str(error))
    finally:
        use_json(as_json=False)
    return FAILED


def _show_usage_error(error: TyperException) -> int:
    """A word of the command line that is not understood, with what it may have meant."""
    option = getattr(error, "option_name", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
    elif option in RETIRED_OPTIONS:
        show_error(f"`{option}` is now `{RETIRED_OPTIONS[option]}`")
    elif possible := getattr(error, "possibilities", None):
        show_error(f"no such option: {option} — did you mean {' or '.join(f'`{name}`' for name in sorted(possible))}?")
    else:
        show_error(error.format_message())
    return error.exit_code
