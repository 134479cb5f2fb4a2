"""What the README tells a newcomer to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import runtimes.cli.main
from packager.cli.main import parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]


def test_the_two_commands_are_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    wanted = {line.split()[1] for line in SHELL if line.startswith("make ")}
    assert {"bundle", "test"} <= wanted
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in wanted)
    variables = {name for line in SHELL for name in re.findall(r"\b([A-Z]+)=", line)}
    assert all(re.search(rf"^{name} *\?=", makefile, re.M) for name in variables)


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("starpack ")])
def test_starpack_commands_parse(line):
    assert parser().parse_args(shlex.split(line)[1:]).command


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("/opt/starcoder2/run")])
def test_run_commands_parse(line):
    assert runtimes.cli.main.parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_block_was_looked_at():
    known = ("make ", "starpack ", "/opt/starcoder2/run ", "./install --to ")
    assert all(line.startswith(known) for line in SHELL)
