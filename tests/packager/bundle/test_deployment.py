"""What an operator copies: the files agree with each other, with `serve` and with a bundle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from packager.bundle.documents.deployment import INSTALLED, PORT, deploy_files
from packager.engine.target import Target
from runtimes.cli import main as cli
from tests.support.packing import bare_environment, sh, write_bundle

pytestmark = pytest.mark.bundle

FILES = deploy_files({"gguf"}, Target("3.11", "x86_64"))
UNITS = [name for name in FILES if name.endswith((".service", ".timer"))]


def test_nothing_is_left_to_be_filled_in() -> None:
    for name, text in FILES.items():
        assert not re.search(r"@[A-Z]+@", text), name
        assert text.endswith("\n") and max(map(len, text.splitlines())) < 230


def test_every_port_is_the_one_that_serve_listens_at() -> None:
    for name, text in FILES.items():
        found = re.findall(r"(?:127\.0\.0\.1:|--port\W+|EXPOSE )(\d+)\b", text)
        ports = {int(port) for port in found}
        assert ports <= {PORT}, name
        if "README" not in name and name not in UNITS and not name.endswith("tabby.json"):
            assert ports == {PORT}, name
    if "serve" in cli.MODULES:
        assert cli.parser().parse_args(["serve"]).port == PORT


def test_the_commands_are_the_runtimes_own() -> None:
    commands = re.findall(rf"^#?ExecStart={INSTALLED}/run (.*)$", "".join(FILES.values()), re.M)
    assert len(commands) == 3
    for line in commands:
        words = line.split()
        if words[0] in cli.MODULES:
            assert cli.parser().parse_args(words).command == words[0]
        else:
            assert words[0] == "serve"  # of the server, where this runtime has none


def test_paths_are_those_of_an_installation(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "parts", tmp_path / "bundle")
    target = tmp_path / "installed"
    assert sh(bundle / "install", "--to", target).returncode == 0
    text = "".join((bundle / path).read_text() for path in FILES)
    paths = set(re.findall(rf"{INSTALLED}/([\w./-]+\w)", text))
    assert paths == {
        "run", "current/bundle/README.md",
        "current/bundle/deploy/starcoder2.service",
    }  # fmt: skip
    assert all((target / path).exists() for path in paths)


def test_clients_are_configured_for_the_models_own_prompt() -> None:
    tabby = tomllib.loads(FILES["deploy/tabby/config.toml"])["model"]["completion"]["http"]
    assert tabby["kind"] == "llama.cpp/completion"
    assert tabby["api_endpoint"] == f"http://127.0.0.1:{PORT}"
    template = "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    assert tabby["prompt_template"] == template
    assert json.loads(FILES["deploy/tabby/tabby.json"]) == {"prompt_template": template}
    (model,) = yaml.safe_load(FILES["deploy/continue.yaml"])["models"]
    assert model["apiBase"] == f"http://127.0.0.1:{PORT}" and model["roles"] == ["autocomplete"]
    assert "deploy/tabby/tabby.json" not in deploy_files({"onnx"}, Target("3.12", "x86_64"))


def test_the_container_recipe_downloads_nothing_but_its_base() -> None:
    lines = [
        line
        for line in FILES["deploy/Containerfile"].splitlines()
        if line and not line.startswith("#")
    ]
    words = [line.split()[0] for line in lines]
    assert words == "ARG FROM COPY RUN FROM COPY USER EXPOSE HEALTHCHECK ENTRYPOINT CMD".split()
    assert lines[0] == "ARG BASE=docker.io/library/python:3.11"
    assert json.loads(lines[3].removeprefix("RUN ")) == ["/bundle/install", "--to", INSTALLED]
    assert "ADD" not in words and not re.search(r"https?://(?!127\.0\.0\.1)", "".join(lines))
    for line in lines[-2:]:
        json.loads(line.split(maxsplit=1)[1])


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_units_are_hardened(name: str) -> None:
    lines = FILES[name].splitlines()
    for setting in ("NoNewPrivileges=yes", "ProtectSystem=strict", "DynamicUser=yes",
                    "CapabilityBoundingSet=", "SystemCallFilter=@system-service"):  # fmt: skip
        assert setting in lines
    serving = "serve" in FILES[name]
    assert ("PrivateNetwork=yes" in lines) != serving
    assert ("IPAddressDeny=any" in lines) == serving
    assert "MemoryDenyWriteExecute=yes" in lines
    with_torch = deploy_files({"gptq"}, Target("3.11", "x86_64"))[name]
    assert ("MemoryDenyWriteExecute=no" in with_torch) == serving


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = tmp_path / "run"  # it looks whether the program is there
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in UNITS:
        text = FILES[name].replace(f"{INSTALLED}/run", str(program))
        (tmp_path / Path(name).name).write_text(text)
    for name in UNITS:
        words = ["systemd-analyze", "verify", "--man=no", str(tmp_path / Path(name).name)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
        assert not ours and done.returncode == 0, done.stderr


def test_systemd_rates_the_units_as_safe(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    for name in UNITS:
        (tmp_path / Path(name).name).write_text(FILES[name])
        if name.endswith(".service"):
            words = ["systemd-analyze", "security", "--offline=yes", "--threshold=25",
                     str(tmp_path / Path(name).name)]  # fmt: skip
            done = subprocess.run(
                words, capture_output=True, text=True, check=False, env=bare_environment()
            )
            assert done.returncode == 0, done.stdout[-600:] + done.stderr
