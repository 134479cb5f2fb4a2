"""The commands that run the model: generate, infill, repl."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from runtimes.cli.formatting import describe_chosen, describe_timings
from runtimes.cli.invocation import Invocation
from runtimes.cli.model import chosen_manifest, open_model
from runtimes.errors import StarpackError, UsageError
from runtimes.generation.completion import Chunk, Finish, GenerateOptions, join
from runtimes.generation.decode_loop import Progress
from runtimes.generation.runtime import Runtime
from runtimes.generation.sampling import Sampling
from runtimes.prompts.fim import Context, RepoFile
from runtimes.prompts.input_text import STDIN, read_text, split_at_cursor, split_at_marker
from runtimes.prompts.repo_context import Chosen, choose, path_in, read_in
from runtimes.prompts.tasks import Task
from runtimes.trust.console import NOTICE, Console

REPL_HELP = "Type text; an empty line sends it. :new starts a new text, :quit or Ctrl-D leaves."
REPO_FRACTION = 0.25  # guessed: of the context, for a repository's files; as in the server

Stream = Callable[[Progress], Iterator[Chunk | Finish]]


def generate(args: argparse.Namespace, call: Invocation) -> None:
    """Continue a prompt."""
    if args.prompt is not None and args.file is not None:
        raise UsageError("a prompt beside --file", expected="one of them, or standard input")
    prompt = _whole_text(args) if args.prompt is None else args.prompt
    options, context, edited = options_of(args), _context(args), _edited(args)
    with open_model(args, call, chosen_manifest(args, call)) as runtime:
        chosen = None if edited is None else _choose(args, runtime, edited, prompt)
        around = _with_chosen(context, chosen, args.repo, edited)

        def stream(progress: Progress) -> Iterator[Chunk | Finish]:
            return runtime.stream_generate(prompt, options, around, progress=progress)

        answer(stream, call.console, chosen=chosen)


def infill(args: argparse.Namespace, call: Invocation) -> None:
    """Fill in between a prefix and a suffix."""
    prefix, suffix = _prefix_and_suffix(args)
    options, context, edited = options_of(args), _context(args), _edited(args)
    with open_model(args, call, chosen_manifest(args, call)) as runtime:
        chosen = None if edited is None else _choose(args, runtime, edited, prefix + suffix)
        around = _with_chosen(context, chosen, args.repo, edited)

        def stream(progress: Progress) -> Iterator[Chunk | Finish]:
            return runtime.stream_infill(prefix, suffix, options, around, progress=progress)

        answer(stream, call.console, chosen=chosen)


def repl(args: argparse.Namespace, call: Invocation) -> None:
    """Grow a text in turns: the user writes, the model goes on until it ends or Ctrl-C."""
    console = call.console
    if console.as_json:
        raise UsageError("repl has no --json", remedy="use `generate --json`")
    options, context = options_of(args), _context(args)
    if sys.stdin.isatty():
        with suppress(ImportError):  # some builds of Python lack it
            importlib.import_module("readline")  # from here on input() edits and recalls lines
    with open_model(args, call, chosen_manifest(args, call)) as runtime:
        console.remark(NOTICE)
        console.remark(REPL_HELP)
        text = ""
        while (typed := _typed()) is not None:
            if typed == ":new\n":
                text = ""
                continue
            text += typed
            try:
                for item in runtime.stream_generate(text, options, context):
                    console.text(item.text)
                    text += item.text
            except KeyboardInterrupt:
                console.remark("\nstopped")
            except StarpackError as error:
                console.error(error)
            if not text.endswith("\n"):
                console.text("\n")
                text += "\n"  # the text is what the screen shows


def answer(
    stream: Stream, console: Console, task: Task | None = None, chosen: Chosen | None = None
) -> None:
    """Show a completion: as it comes, or as one JSON value; and what a task has around it."""
    console.remark(NOTICE)
    if chosen is not None:
        console.remark(describe_chosen(chosen))
    if task is not None and not console.as_json:
        console.text(task.before.lstrip("\n"))
    items: list[Chunk | Finish] = []
    for item in stream(console.meter("prompt", "tokens")):
        items.append(item)
        if not console.as_json:
            console.text(item.text)
    completion = join(items)
    after = "" if task is None else task.after
    if console.as_json:
        facts = completion.to_json() | {"machine_generated": True}
        if task is not None:
            facts |= {"before": task.before, "after": after, "at": task.at}
        if chosen is not None:
            facts["repository"] = asdict(chosen) | {"files": [file.path for file in chosen.files]}
        console.data(facts)
    elif after:
        console.text(after)
    elif not completion.text.endswith("\n"):
        console.remark("")  # so that the next line on a terminal starts at its left
    console.remark(describe_timings(completion.finish.timings, completion.finish.reason))


def _prefix_and_suffix(args: argparse.Namespace) -> tuple[str, str]:
    two_files = args.prefix_file is not None or args.suffix_file is not None
    if two_files + (args.cursor is not None) + (args.marker is not None) != 1:
        raise UsageError(
            "infill needs the place of the gap, named in one way",
            expected="--prefix-file and --suffix-file, or --file with --cursor, or --marker",
        )
    if two_files:
        if args.file is not None:
            raise UsageError("--file beside --prefix-file or --suffix-file")
        parts = (args.prefix_file, args.suffix_file)
        if parts == (STDIN, STDIN):
            raise UsageError("prefix and suffix cannot both be standard input")
        prefix, suffix = ("" if part is None else read_text(part) for part in parts)
        return prefix, suffix
    text = _whole_text(args)
    if args.cursor is not None:
        return split_at_cursor(text, args.cursor)
    return split_at_marker(text, args.marker)


def _whole_text(args: argparse.Namespace) -> str:
    """Of --file, which is a path in the repository where there is one; else standard input."""
    if args.repo is None or args.file in (None, STDIN):
        return read_text(args.file or STDIN)
    return read_in(args.repo, path_in(args.repo, args.file))


def _context(args: argparse.Namespace) -> Context:
    files = tuple(RepoFile(path, read_text(path)) for path in args.repo_file)
    return Context(repo_name=args.repo_name, files=files, path=args.path)


def _edited(args: argparse.Namespace) -> str | None:
    """The edited file's path in --repo; None without one."""
    if args.repo is None:
        if args.repo_tokens is not None:
            raise UsageError("--repo-tokens without --repo")
        return None
    edited = args.path or args.file
    if edited in (None, STDIN):
        raise UsageError(
            "--repo needs the path of the edited file",
            expected="--file PATH, or --path PATH beside another source of the text",
        )
    return path_in(args.repo, edited)


def _choose(args: argparse.Namespace, runtime: Runtime, edited: str, text: str) -> Chosen:
    """Files of --repo for a text of one of them."""
    budget = args.repo_tokens
    if budget is None:
        budget = int(runtime.backend.context_tokens * REPO_FRACTION)
    return choose(args.repo, edited, text, lambda t: len(runtime.tokenizer.encode(t)), budget)


def _with_chosen(
    context: Context, chosen: Chosen | None, folder: Path | None, edited: str | None
) -> Context:
    """`context` with the files that were chosen before those that were named."""
    if chosen is None or folder is None:
        return context
    name = context.repo_name or folder.resolve().name or None
    return Context(name, (*chosen.files, *context.files), edited)


def options_of(args: argparse.Namespace) -> GenerateOptions:
    return GenerateOptions(
        max_tokens=args.max_tokens,
        sampling=Sampling(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            seed=args.seed,
        ),
        stop=tuple(args.stop),
        logprobs=args.logprobs,
        max_time_s=args.max_time,
        speculate=args.speculation,
    )


def _typed() -> str | None:
    """Lines up to an empty one; None when the user leaves."""
    lines: list[str] = []
    while True:
        try:
            line = input("... " if lines else ">>> ")
        except EOFError:
            return None
        if line == ":quit":
            return None
        if line == ":new" and not lines:
            return ":new\n"
        if not line and lines:
            return "\n".join(lines) + "\n"
        if line:
            lines.append(line)
