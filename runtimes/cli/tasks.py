"""The commands docstring, explain and translate: patterns over the same two verbs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

from runtimes.cli.generate import answer, options_of
from runtimes.cli.invocation import Invocation
from runtimes.cli.model import chosen_manifest, open_model
from runtimes.errors import UsageError
from runtimes.generation.completion import Chunk, Finish
from runtimes.generation.decode_loop import Progress
from runtimes.prompts import tasks
from runtimes.prompts.input_text import STDIN, read_text
from runtimes.prompts.languages import Language, language_named, language_of
from runtimes.prompts.tasks import Task


def docstring(args: argparse.Namespace, call: Invocation) -> None:
    """Document a definition."""
    _perform(args, call, lambda code, own: tasks.docstring(code, own, args.line))


def explain(args: argparse.Namespace, call: Invocation) -> None:
    """Explain code in a comment."""
    _perform(args, call, tasks.explain)


def translate(args: argparse.Namespace, call: Invocation) -> None:
    """Write code in another language."""
    target = language_named(args.to)
    _perform(args, call, lambda code, own: tasks.translate(code, own, target))


def _perform(
    args: argparse.Namespace, call: Invocation, pattern: Callable[[str, Language], Task]
) -> None:
    """Read the code, fill the pattern in, and show the answer with what belongs around it."""
    task = pattern(read_text(args.file or STDIN), _language(args))
    options = options_of(args)
    options = replace(options, stop=(*options.stop, *task.stop))

    with open_model(args, call, chosen_manifest(args, call)) as runtime:

        def stream(progress: Progress) -> Iterator[Chunk | Finish]:
            if task.suffix is None:
                return runtime.stream_generate(task.prefix, options, progress=progress)
            return runtime.stream_infill(task.prefix, task.suffix, options, progress=progress)

        answer(stream, call.console, task)


def _language(args: argparse.Namespace) -> Language:
    if args.language is not None:
        return language_named(args.language)
    if args.file in (None, STDIN):
        raise UsageError("the code comes from standard input", remedy="name its --language")
    return language_of(args.file)
