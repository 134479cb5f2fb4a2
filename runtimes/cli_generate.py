"""The commands that run the model: generate, infill, repl."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict

from runtimes.cli_inspect import open_model
from runtimes.completion import Chunk, GenerateOptions, join
from runtimes.console import NOTICE, Console, describe_timings
from runtimes.errors import StarpackError, UsageError
from runtimes.prompt import Context, RepoFile
from runtimes.runtime import Runtime
from runtimes.sampling import Sampling
from runtimes.sources import STDIN, read_text, split_at_cursor, split_at_marker

REPL_HELP = "Type text; an empty line sends it. :new starts afresh, :quit or Ctrl-D leaves."

Stream = Callable[[Runtime, Callable[[int, int], None]], Iterator[Chunk]]


def generate(args: argparse.Namespace, console: Console) -> None:
    """Continue a prompt."""
    if args.prompt is not None and args.file is not None:
        raise UsageError("a prompt and --file", expected="one of them, or standard input")
    prompt = read_text(args.file or STDIN) if args.prompt is None else args.prompt
    options, context = _options(args), _context(args)

    def stream(runtime: Runtime, progress: Callable[[int, int], None]) -> Iterator[Chunk]:
        return runtime.stream_generate(prompt, options, context, progress=progress)

    with open_model(args, console) as runtime:
        _answer(runtime, stream, console)


def infill(args: argparse.Namespace, console: Console) -> None:
    """Fill in between a prefix and a suffix."""
    prefix, suffix = _prefix_and_suffix(args)
    options, context = _options(args), _context(args)

    def stream(runtime: Runtime, progress: Callable[[int, int], None]) -> Iterator[Chunk]:
        return runtime.stream_infill(prefix, suffix, options, context, progress=progress)

    with open_model(args, console) as runtime:
        _answer(runtime, stream, console)


def repl(args: argparse.Namespace, console: Console) -> None:
    """Grow a text in turns: the user writes, the model goes on until it ends or Ctrl-C."""
    if console.as_json:
        raise UsageError("repl has no --json", remedy="use `generate --json`")
    options, context = _options(args), _context(args)
    with open_model(args, console) as runtime:
        console.remark(NOTICE)
        console.remark(REPL_HELP)
        text = ""
        while (typed := _typed()) is not None:
            if typed == ":new\n":
                text = ""
                continue
            text += typed
            try:
                for chunk in runtime.stream_generate(text, options, context):
                    console.text(chunk.text)
                    text += chunk.text
            except KeyboardInterrupt:
                console.remark("\nstopped")
            except StarpackError as error:
                console.error(error)
            if not text.endswith("\n"):
                console.text("\n")
                text += "\n"  # the text is what the screen shows


def _answer(runtime: Runtime, stream: Stream, console: Console) -> None:
    """Show a completion: as it comes, or as one JSON value."""
    console.remark(NOTICE)
    chunks: list[Chunk] = []
    for chunk in stream(runtime, console.meter("prompt", "tokens")):
        chunks.append(chunk)
        if not console.as_json:
            console.text(chunk.text)
    completion = join(chunks)
    if console.as_json:
        console.data(asdict(completion) | {"machine_generated": True})
    elif not completion.text.endswith("\n"):
        console.remark("")  # so that the next line on a terminal starts at its left
    console.remark(describe_timings(completion.timings, completion.finish_reason))


def _prefix_and_suffix(args: argparse.Namespace) -> tuple[str, str]:
    two_files = args.prefix_file is not None or args.suffix_file is not None
    if two_files + (args.cursor is not None) + (args.marker is not None) != 1:
        raise UsageError(
            "infill needs to know where the gap is, in one way",
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
    text = read_text(args.file or STDIN)
    if args.cursor is not None:
        return split_at_cursor(text, args.cursor)
    return split_at_marker(text, args.marker)


def _context(args: argparse.Namespace) -> Context:
    files = tuple(RepoFile(path, read_text(path)) for path in args.repo_file)
    return Context(repo_name=args.repo_name, files=files, path=args.path)


def _options(args: argparse.Namespace) -> GenerateOptions:
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
