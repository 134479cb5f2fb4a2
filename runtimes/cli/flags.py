"""Groups of flags that commands share; runtimes/cli/main.py says which command has which."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from runtimes.cli.numbers import MAX_SECONDS, decimal, whole


def add_address(sub: argparse.ArgumentParser) -> None:
    """Where a server listens, and who has access."""
    add = sub.add_argument_group("address and access").add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s); others need an API key",
    )
    add(
        "--port",
        type=whole(0, 65535),
        default=8012,
        metavar="N",
        help="port to listen on (default: %(default)s); 0 takes a free one",
    )
    add(
        "--api-key-file", type=Path, metavar="FILE",
        help="file of API keys, one a line; or set STARPACK_API_KEY",
    )  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM, to serve HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="the certificate's private key in PEM")
    add(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="allow web pages of this origin, such as https://example.org; repeatable",
    )  # fmt: skip
    add("--name", metavar="NAME", help="the model's name for clients (default: the checkpoint's)")


def add_limits(sub: argparse.ArgumentParser) -> None:
    """Limits of a server, and what it assumes where a request does not say."""
    add = sub.add_argument_group("requests").add_argument
    add(
        "--slots", type=whole(1), default=4, metavar="N",
        help="cached prompts, each with its keys and values (default: %(default)s)",
    )  # fmt: skip
    add(
        "--queue",
        type=whole(1),
        default=32,
        metavar="N",
        help="maximum requests that wait (default: %(default)s)",
    )
    add(
        "--request-time", type=decimal(0, MAX_SECONDS, above=True), default=120.0,
        metavar="SECONDS", help="time limit of a request, its wait included (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max-tokens", type=whole(1), default=1024, metavar="N",
        help="maximum tokens of any answer (default: %(default)s)",
    )  # fmt: skip
    add(
        "--temperature", type=decimal(0, 100), default=0.0, metavar="T",
        help="temperature of requests that name none; 0, the default, is greedy",
    )  # fmt: skip
    add(
        "--over-context", choices=("error", "trim"), default="error",
        help="what to do with a prompt that is too long (default: %(default)s)",
    )  # fmt: skip
    add(
        "--suffix-share", type=decimal(0, 1), default=0.25, metavar="FRACTION",
        help="minimum fraction of a trimmed prompt reserved for the suffix (default: %(default)s)",
    )  # fmt: skip
    add(
        "--extras-share", type=decimal(0, 1), default=0.25, metavar="FRACTION",
        help="minimum fraction reserved for other files (default: %(default)s)",
    )  # fmt: skip
    add(
        "--no-raw-fim", action="store_false", dest="raw_fim",
        help="treat a spelt <fim_prefix>...<fim_suffix>...<fim_middle> prompt as plain text",
    )  # fmt: skip
    add(
        "--supersede", action="store_true",
        help="a new request replaces its client's older ones (or send X-Supersede: 1)",
    )  # fmt: skip
    add(
        "--max-body", type=whole(1), default=2 * 1024 * 1024, metavar="BYTES",
        help="maximum size of a request (default: %(default)s)",
    )  # fmt: skip
    add(
        "--connections", type=whole(1), default=256, metavar="N",
        help="maximum open connections (default: %(default)s)",
    )  # fmt: skip
    add(
        "--grace", type=whole(0, MAX_SECONDS), default=10, metavar="SECONDS",
        help="time for running requests when the server stops (default: %(default)s)",
    )  # fmt: skip
    add("--log-prompts", action="store_true", help="also log prompts and answers")


def add_generation(sub: argparse.ArgumentParser) -> None:
    """How tokens are chosen, and when an answer ends."""
    add = sub.add_argument_group("generation").add_argument
    add(
        "--max-tokens", type=whole(0), default=128, metavar="N",
        help="maximum tokens of the answer (%(default)s)",
    )  # fmt: skip
    add(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; repeatable",
    )  # fmt: skip
    add(
        "--max-time", type=decimal(0, MAX_SECONDS, above=True), metavar="SECONDS",
        help="end after this many seconds",
    )  # fmt: skip
    add(
        "--logprobs", type=whole(0), metavar="N",
        help="with --json: log-probabilities of the N best tokens",
    )  # fmt: skip
    add(
        "--no-speculation", action="store_false", dest="speculation",
        help="turn prompt lookup off: slower, the same answer",
    )  # fmt: skip
    _add_sampling(add)


def _add_sampling(add: Callable[..., object]) -> None:
    add(
        "--temperature", type=decimal(0), default=0.0, metavar="T",
        help="of sampling; 0, the default, is greedy",
    )  # fmt: skip
    add(
        "--top-k", type=whole(-1), default=0, metavar="K",
        help="keep the K likeliest tokens; 0 is off",
    )  # fmt: skip
    add(
        "--top-p", type=decimal(0, 1, off=-1), default=1.0, metavar="P",
        help="keep the likeliest tokens up to this probability; 1 is off",
    )  # fmt: skip
    add(
        "--min-p", type=decimal(0, 1, off=-1), default=0.0, metavar="P",
        help="drop tokens below this fraction of the likeliest; 0 is off",
    )  # fmt: skip
    add(
        "--repetition-penalty", type=decimal(0.01, 100), default=1.0, metavar="R",
        help="above 1, tokens that already occurred become less likely",
    )  # fmt: skip
    add(
        "--seed", type=whole(0, 2**64 - 1), default=0, metavar="N",
        help="same seed, same answer (see --reproducible)",
    )  # fmt: skip


def add_context(sub: argparse.ArgumentParser) -> None:
    """The parts of a repository that precede the prompt."""
    group = sub.add_argument_group("repository (the model was trained on prompts in this form)")
    group.add_argument(
        "--repo-name", metavar="NAME", help="the repository's name, such as owner/project"
    )
    group.add_argument(
        "--repo-file", action="append", default=[], metavar="FILE",
        help="another file of the repository, as context; repeatable",
    )  # fmt: skip
    group.add_argument("--path", metavar="PATH", help="the edited file's path in the repository")


def add_model(sub: argparse.ArgumentParser) -> None:
    """How a model is opened."""
    group = sub.add_argument_group("model")
    group.add_argument(
        "--context",
        type=whole(1),
        metavar="TOKENS",
        help="maximum tokens of prompt and answer together (default: as trained)",
    )
    group.add_argument(
        "--threads",
        type=whole(1),
        metavar="N",
        help="CPU threads (default: the cores available to this process)",
    )
    group.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu",
        help="what runs the model; an absent one is an error (default: cpu)",
    )  # fmt: skip
    group.add_argument(
        "--gpu-layers", type=whole(0), default=0, metavar="N",
        help="GGUF: layers to put on a GPU, where not all",
    )  # fmt: skip
    group.add_argument(
        "--flash-attention", choices=("auto", "on", "off"), default="auto",
        help="GGUF: fused attention, which takes less memory; auto: only where it is as exact, so "
        "not on a CPU (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--variant", metavar="NAME",
        help="the variant to run, of a bundle with several; auto: the best that fits the free "
        "memory (default: the best where the bundle was packed)",
    )  # fmt: skip
    group.add_argument(
        "--reproducible", action="store_true",
        help="the same answer to the bit each time: no prompt lookup, and cached prompts are "
        "reused in groups of 64 tokens",
    )  # fmt: skip
    group.add_argument(
        "--no-verify", action="store_false", dest="verify",
        help="do not hash the bundle again, for one that was just checked",
    )  # fmt: skip
