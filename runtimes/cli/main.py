"""The command line of a bundle: flags, help, exit codes. Each command is in a file beside it.

Exit codes: 0 done, 2 usage, 5 a damaged bundle, 6 something tried to use the network,
7 engine or memory missing, 130 interrupted; runtimes/errors.py has them all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from runtimes.cli import flags
from runtimes.cli.invocation import Invocation
from runtimes.cli.numbers import whole, whole_list
from runtimes.errors import DeviceError, StarpackError, UsageError
from runtimes.trust.console import Console
from runtimes.trust.installed.version import Verified, Version
from runtimes.trust.manifest import MANIFEST_NAME, read_manifest

OWN_FOLDER = Path(__file__).resolve().parents[2]  # the bundle, or the checkout
Command = Callable[[argparse.Namespace, Invocation], None]
PROGRAM = "python -m runtimes"
DESCRIPTION = "Generate and infill code with the model of a starpack bundle, without a network."
EXAMPLES_TITLE = "examples (an installed bundle has DIR/run in place of `python -m runtimes`):"
EXAMPLES = {
    "generate": """\
{run} generate 'def fibonacci(n):'
{run} generate --file draft.py --max-tokens 200 --stop $'\\n\\n'
{run} generate --repo ~/tools --file tools/main.py""",
    "infill": """\
{run} infill --file app.py --cursor 12:5
echo 'def add(a, b):
    return <HERE>' | {run} infill --marker '<HERE>' --json
{run} infill --prefix-file head.py --suffix-file tail.py \\
    --repo-name me/tools --repo-file tools/text.py --path tools/main.py""",
    "docstring": "{run} docstring --file app.py --line 12",
    "explain": "{run} explain --file app.py",
    "translate": "{run} translate --file app.py --to javascript",
    "repl": "{run} repl --temperature 0.2 --seed 7",
    "serve": "{run} serve --port 8012",
    "verify": "{run} verify --full --public-key release.pub",
    "rollback": "{run} rollback",
    "licence": "{run} licence",
    "doctor": "{run} doctor --json",
    "bench": "{run} bench --prompt-tokens 1024 --depths 1024,8192",
}

MODULES = {
    "generate": "runtimes.cli.generate",
    "infill": "runtimes.cli.generate",
    "docstring": "runtimes.cli.tasks",
    "explain": "runtimes.cli.tasks",
    "translate": "runtimes.cli.tasks",
    "repl": "runtimes.cli.generate",
    "serve": "runtimes.cli.serve",
    "verify": "runtimes.cli.verify",
    "rollback": "runtimes.cli.verify",
    "licence": "runtimes.cli.licence",
    "doctor": "runtimes.cli.doctor",
    "bench": "runtimes.cli.bench",
}


def main(
    argv: list[str] | None = None,
    version: Version | None = None,
    verified: Verified | None = None,
) -> int:
    """Run one command; returns its exit code.

    version: the installed one that this belongs to; verified: what was found when it was checked.
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--licence"]:
        words = ["licence", *words[1:]]
    console = Console("--json" in words, "--quiet" in words)
    try:
        args = parser().parse_args(words)
        console = Console(args.json, args.quiet)
        if args.bundle is None:
            call = Invocation(_own_bundle(), version, console, verified)
        else:
            call = Invocation(args.bundle, None, console)
        _command(args.command)(args, call)
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (StarpackError, OSError, KeyboardInterrupt) as error:
        return console.failed(error)
    return 0


def _command(name: str) -> Command:
    """The function of a command. Its libraries are loaded only now: --help must not wait."""
    try:
        module = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise DeviceError(
            f"the Python package {error.name!r} is missing",
            remedy="run the bundle's `install`; in a checkout, `make setup`",
        ) from None
    command: Command = getattr(module, name)
    return command


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that they are shown as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"see {self.prog} --help")


class _ShowVersion(argparse.Action):
    """Prints the version that packed the bundle which this runtime is in, or the checkout's."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("starpack", _starpack_version())
        parser.exit()


def _starpack_version() -> str:
    if (OWN_FOLDER / MANIFEST_NAME).is_file():
        return read_manifest(OWN_FOLDER).versions.get("starpack", "unknown")
    try:
        return metadata.version("starpack")
    except metadata.PackageNotFoundError:
        return "unknown"


def _examples(*commands: str) -> str:
    lines = "\n".join(EXAMPLES[name] for name in commands).format(run=PROGRAM).splitlines()
    return "\n".join([EXAMPLES_TITLE, *(f"  {line}" for line in lines)])


def _add_command(
    commands: argparse._SubParsersAction[_Parser], name: str, text: str
) -> argparse.ArgumentParser:
    sub = commands.add_parser(
        name, help=text, description=text, epilog=_examples(name), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sub.add_argument(
        "--bundle", type=Path, metavar="DIR",
        help="the bundle (default: the one that contains this runtime)",
    )  # fmt: skip
    sub.add_argument("--json", action="store_true", help="print one JSON value, errors included")
    sub.add_argument("--quiet", action="store_true", help="print no messages beside the result")
    return sub


def parser() -> argparse.ArgumentParser:
    """The whole command line. It raises UsageError for a command line that is not valid."""
    top = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description=DESCRIPTION,
        epilog=_examples(*EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--licence", action="store_true", help="the same as the command licence")
    top.add_argument("--version", action=_ShowVersion, nargs=0, help="show starpack's version")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return _add_command(commands, name, text)

    generate = command("generate", "continue a prompt")
    generate.add_argument("prompt", nargs="?", help="the prompt (default: standard input)")
    generate.add_argument("--file", help="read the prompt from this file")
    infill = command("infill", "fill in the text between a prefix and a suffix")
    _add_gap(infill)
    for sub in (generate, infill):
        _add_repository(sub)
    tasks = _add_tasks(command)
    repl = command("repl", "write a text in turns with the model")
    serve = command("serve", "answer editors and other clients over HTTP")
    flags.add_address(serve)
    flags.add_limits(serve)
    verify = command("verify", "check every byte of the bundle against its manifest")
    _add_verify(verify)
    command("rollback", "go back to the version installed before this one")
    command("licence", "show the model's licence with its use restrictions")
    doctor = command(
        "doctor", "check this machine, and compare its speed with the bundle's baseline"
    )
    doctor.add_argument(
        "--quick", action="store_true", help="measure for seconds instead of a minute"
    )
    bench = command(
        "bench", "time prompts of several lengths, and tokens after contexts of several lengths"
    )
    _add_bench(bench)
    for sub in (generate, infill, *tasks, repl):
        flags.add_generation(sub)
    for sub in (generate, infill, repl):
        flags.add_context(sub)
    for sub in (generate, infill, *tasks, repl, serve, doctor, bench):
        flags.add_model(sub)
    return top


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "--full", action="store_true",
        help="hash every file again, also those unchanged since the last check",
    )  # fmt: skip
    verify.add_argument(
        "--public-key", type=Path, metavar="FILE",
        help="check the bundle's signature with this key; needs the openssl command",
    )  # fmt: skip


def _add_gap(sub: argparse.ArgumentParser) -> None:
    gap = sub.add_argument_group("the gap (name it in one way; FILE - is standard input)")
    gap.add_argument("--prefix-file", metavar="FILE", help="the text before the gap")
    gap.add_argument("--suffix-file", metavar="FILE", help="the text after the gap")
    gap.add_argument("--file", metavar="FILE", help="the whole text (default: standard input)")
    gap.add_argument(
        "--cursor", metavar="LINE:COLUMN", help="the gap's place in --file, both counted from 1"
    )
    gap.add_argument("--marker", metavar="TEXT", help="a text in --file that marks the gap")


def _add_bench(sub: argparse.ArgumentParser) -> None:
    add = sub.add_argument_group("what to time").add_argument
    add(
        "--prompt-tokens", type=whole_list, metavar="N,...",
        help="lengths of prompts (128,512,1024; those that fit the context)",
    )  # fmt: skip
    add(
        "--depths", type=whole_list, metavar="N,...",
        help="tokens before each timed token (128,1024,4096,8192; those that fit)",
    )  # fmt: skip
    add(
        "--steps",
        type=whole(1),
        default=32,
        metavar="N",
        help="tokens timed at each depth (%(default)s)",
    )
    add("--repeat", type=whole(1), default=3, metavar="N", help="runs of each prompt (%(default)s)")


def _add_repository(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("repository-level completion")
    group.add_argument(
        "--repo", type=Path, metavar="DIR",
        help="add the most relevant files of this folder as context; --file is a path in it",
    )  # fmt: skip
    group.add_argument(
        "--repo-tokens", type=whole(0), metavar="N",
        help="maximum tokens of those files (default: a quarter of the context)",
    )  # fmt: skip


def _add_tasks(
    command: Callable[[str, str], argparse.ArgumentParser],
) -> tuple[argparse.ArgumentParser, ...]:
    """Tasks of a base model, which follows no instructions: see runtimes/prompts/tasks.py."""
    docstring = command("docstring", "document a definition")
    explain = command("explain", "explain code in a comment")
    translate = command("translate", "write code in another language")
    for sub in (docstring, explain, translate):
        sub.add_argument("--file", metavar="FILE", help="the code (default: standard input)")
        sub.add_argument(
            "--language", metavar="NAME", help="the code's language (default: by the file's suffix)"
        )
    docstring.add_argument(
        "--line", type=whole(1), default=1, metavar="N",
        help="document the first definition at or after this line (default: %(default)s)",
    )  # fmt: skip
    translate.add_argument(
        "--to", required=True, metavar="NAME", help="the language to write it in"
    )
    return docstring, explain, translate


def _own_bundle() -> Path:
    if (OWN_FOLDER / MANIFEST_NAME).is_file():
        return OWN_FOLDER
    raise UsageError(
        "this runtime is not inside a bundle", remedy="name a bundle with --bundle DIR"
    )
