"""Files for schedulers, read back by a shell, by a parser of their options and by the command line itself."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from mllm_tailor.cli.app import run_command
from mllm_tailor.commands.launch import LaunchOptions, launch
from mllm_tailor.core.errors import RecipeError, RunError
from mllm_tailor.launch.kuberay import ray_job
from mllm_tailor.launch.plan import LaunchPlan
from mllm_tailor.launch.processes import run_by_torchrun
from mllm_tailor.launch.skypilot import sky_task
from mllm_tailor.launch.slurm import sbatch_script

# Options of sbatch (Slurm 24.05) that a script of ours may use, and which of them take no value.
SBATCH = {
    "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time", "chdir", "output", "gpus-per-node",
    "requeue", "open-mode",
}  # fmt: skip
SBATCH_FLAGS = {"requeue"}
PLAN = LaunchPlan(
    "My receipts, 2", "my recipe.yaml", ("train.epochs=5", "name=it's"), PurePosixPath("/shared/my data"),
    nodes=2, per_node=4, gpus=4, image="registry/tailor:1", volume="claim", accelerator="H100", exclude_faulty=True,
)  # fmt: skip


def sbatch_options(script: str) -> dict[str, str]:
    options = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            (word,) = shlex.split(line)[1:]
            name, equals, value = word.removeprefix("--").partition("=")
            assert name in SBATCH, name
            assert bool(equals) is (name not in SBATCH_FLAGS)
            options[name] = value
    return options


def run_shell(text: str, folder: Path, **variables: str) -> list[list[str]]:
    """Run a script with stand-ins that note their words; returns the words of each call."""
    stand_ins = folder / "bin"
    stand_ins.mkdir()
    for name in ("srun", "python", "scontrol"):
        file = stand_ins / name
        file.write_text(
            '#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@" END >> "$CALLS"\n'
            f'[ {name} = scontrol ] && printf "node1\\nnode2\\n"\nexit 0\n'
        )
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    calls = folder / "calls"
    environment = {"PATH": f"{stand_ins}:{os.environ['PATH']}", "CALLS": str(calls), **variables}
    subprocess.run(["bash", "-c", text], env=environment, check=True)
    return [call.splitlines() for call in calls.read_text().split("END\n") if call]


def test_the_batch_script_parses_and_starts_torchrun(tmp_path: Path) -> None:
    script = sbatch_script(PLAN)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    options = sbatch_options(script)
    assert options["nodes"] == "2" and options["gpus-per-node"] == "4" and options["chdir"] == "/shared/my data"
    calls = run_shell(script, tmp_path, SLURM_JOB_NODELIST="node[1-2]", SLURM_JOB_ID="17")
    assert calls[0][:3] == ["scontrol", "show", "hostnames"]
    (call,) = calls[1:]
    assert call[:4] == ["srun", "--cpus-per-task=8", "--kill-on-bad-exit=1", "python"]
    assert {"--nnodes=2", "--nproc-per-node=4", "--rdzv-id=17", "--rdzv-endpoint=node1:29500"} <= set(call)
    assert call[-6:] == [
        "mllm_tailor.cli.main",
        "run",
        "my recipe.yaml",
        "train.epochs=5",
        "name=it's",
        "--exclude-faulty",
    ]
    assert "gpus-per-node" not in sbatch_options(sbatch_script(LaunchPlan("x", "r.yaml", (), PurePosixPath("/x"))))


def test_the_sky_task_starts_torchrun(tmp_path: Path) -> None:
    task = yaml.safe_load(sky_task(PLAN))
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:4"
    assert task["volumes"] == {"/shared/my data": "claim"}
    text = task["run"].replace("'/shared/my data'", shlex.quote(str(tmp_path)))
    (call,) = run_shell(text, tmp_path, SKYPILOT_NODE_IPS="10.0.0.7\n10.0.0.8", SKYPILOT_NODE_RANK="1")
    assert {"--node-rank=1", "--master-addr=10.0.0.7"} <= set(call) and call[-3:] == PLAN.run_words()[-3:]
    with pytest.raises(RecipeError, match="--accelerator H100"):
        sky_task(LaunchPlan("x", "r.yaml", (), PurePosixPath("/x"), gpus=1))
    with pytest.raises(RecipeError, match="shared storage"):
        sky_task(LaunchPlan("x", "r.yaml", (), PurePosixPath("/x"), nodes=2))


def test_the_ray_job_launches_on_its_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    job = yaml.safe_load(ray_job(PLAN))
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("ray.io/v1", "RayJob", "my-receipts-2")
    spec = job["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/shared/my data"}]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"

    shell = shlex.split(job["spec"]["entrypoint"])
    assert shell[:2] == ["bash", "-c"] and shell[2].startswith("cd '/shared/my data' && tailor launch ")
    seen: list[Any] = []
    monkeypatch.setattr("mllm_tailor.commands.launch.launch", lambda *words: seen.extend(words))
    monkeypatch.setattr("mllm_tailor.cli.app._check_settings", lambda *words: None)
    assert run_command(shlex.split(shell[2].partition(" && tailor ")[2])) == 0  # understood by the command line
    path, overrides, options, folder, settings = seen
    assert (str(path), overrides) == ("my recipe.yaml", list(PLAN.overrides))
    assert options == LaunchOptions("ray") and folder is None
    assert {name: settings[name] for name in ("nodes", "per_node", "gpus", "cpus", "exclude_faulty")} == {
        "nodes": 2, "per_node": 4, "gpus": 4, "cpus": 8, "exclude_faulty": True,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="--image"):
        ray_job(LaunchPlan("x", "r.yaml", (), PurePosixPath("/x")))


def test_files_are_written_shown_and_submitted_where_the_tool_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("{name: receipts, data: data, task: answer}")
    assert run_command(["launch", "recipe.yaml", "--on", "slurm", "--nodes", "2", "train.epochs=5"]) == 0
    shown = capsys.readouterr().out
    script = Path("receipts.sbatch").read_text()
    assert script in shown and "sbatch receipts.sbatch" in shown
    assert sbatch_options(script)["chdir"] == str(tmp_path) and "recipe.yaml train.epochs=5" in script

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="sbatch is not installed here"):
        launch(Path("recipe.yaml"), [], LaunchOptions("slurm", submit=True), None, {"per_node": 1})
    tool = tmp_path / "sbatch"
    tool.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/submitted"\n')
    tool.chmod(0o755)
    launch(Path("recipe.yaml"), [], LaunchOptions("slurm", submit=True), None, {"per_node": 1})
    assert (tmp_path / "submitted").read_text() == "receipts.sbatch\n"


def test_mistakes_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{name: receipts, data: data, task: answer}")
    with pytest.raises(RecipeError, match="did you mean `slurm`"):
        launch(recipe, [], LaunchOptions("slrum"), None, {"per_node": 1})
    with pytest.raises(RecipeError, match="at most --per-node 2"):
        LaunchPlan("x", "r.yaml", (), PurePosixPath("/x"), per_node=4, gpus=2)
    with pytest.raises(RunError, match="--meet first-node:29500"):
        run_by_torchrun(LaunchPlan("x", "r.yaml", (), PurePosixPath("/x"), nodes=2))
