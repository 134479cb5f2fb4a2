"""Groups of flags that commands of a bundle share; runtimes/cli/main.py says which has which."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtimes.cli.numbers import MAX_SECONDS, decimal, whole


def add_address(sub: argparse.ArgumentParser) -> None:
    """Where a server listens, and who may ask."""
    add = sub.add_argument_group("address and access").add_argument
    add("--host", default="127.0.0.1", help="default: %(default)s; others need an API key")
    add(
        "--port",
        type=whole(0, 65535),
        default=8012,
        metavar="N",
        help="default: %(default)s; 0 is any",
    )
    add(
        "--api-key-file", type=Path, metavar="FILE",
        help="keys that clients must have, one a line; or set STARPACK_API_KEY",
    )  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM; serves HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="its private key in PEM")
    add(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="web pages that may ask, such as https://example.org; may be given again",
    )  # fmt: skip
    add("--name", metavar="NAME", help="of the model, for clients (default: the checkpoint's)")


def add_limits(sub: argparse.ArgumentParser) -> None:
    """What a server takes, and how it answers by default."""
    add = sub.add_argument_group("requests").add_argument
    add(
        "--slots", type=whole(1), default=4, metavar="N",
        help="prompts that are remembered, each with its keys and values (default: %(default)s)",
    )  # fmt: skip
    add(
        "--queue",
        type=whole(1),
        default=32,
        metavar="N",
        help="most that wait (default: %(default)s)",
    )
    add(
        "--request-time", type=decimal(0, MAX_SECONDS, above=True), default=120.0,
        metavar="SECONDS", help="for waiting and answering (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max-tokens", type=whole(1), default=1024, metavar="N",
        help="longest answer to any request (default: %(default)s)",
    )  # fmt: skip
    add(
        "--temperature", type=decimal(0, 100), default=0.0, metavar="T",
        help="for requests that name none; 0, the default, is greedy",
    )  # fmt: skip
    add(
        "--over-context", choices=("error", "trim"), default="error",
        help="what to do with a prompt that is too long (default: %(default)s)",
    )  # fmt: skip
    add(
        "--suffix-share", type=decimal(0, 1), default=0.25, metavar="SHARE",
        help="of the room that a trimmed prompt's suffix is sure of (default: %(default)s)",
    )  # fmt: skip
    add(
        "--extras-share", type=decimal(0, 1), default=0.25, metavar="SHARE",
        help="the same for other files (default: %(default)s)",
    )  # fmt: skip
    add(
        "--no-raw-fim", action="store_false", dest="raw_fim",
        help="take a prompt that spells <fim_prefix>...<fim_suffix>...<fim_middle> as plain text",
    )  # fmt: skip
    add(
        "--supersede", action="store_true",
        help="a request takes the place of its client's older ones (or send X-Supersede: 1)",
    )  # fmt: skip
    add(
        "--max-body", type=whole(1), default=2 * 1024 * 1024, metavar="BYTES",
        help="largest request (default: %(default)s)",
    )  # fmt: skip
    add(
        "--connections", type=whole(1), default=256, metavar="N",
        help="most at a time (default: %(default)s)",
    )  # fmt: skip
    add(
        "--grace", type=whole(0, MAX_SECONDS), default=10, metavar="SECONDS",
        help="for what runs when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    add("--log-prompts", action="store_true", help="log prompts and answers, too")


def add_generation(sub: argparse.ArgumentParser) -> None:
    """How ids are chosen, and when an answer ends."""
    group = sub.add_argument_group("generation")
    add = group.add_argument
    add("--max-tokens", type=whole(0), default=128, metavar="N", help="default: %(default)s")
    add(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given again",
    )  # fmt: skip
    add(
        "--max-time",
        type=decimal(0, MAX_SECONDS, above=True),
        metavar="SECONDS",
        help="end after this time",
    )
    add(
        "--temperature", type=decimal(0), default=0.0, metavar="T", help="0, the default, is greedy"
    )
    add("--top-k", type=whole(-1), default=0, metavar="K", help="keep the K likeliest; 0 is off")
    add(
        "--top-p",
        type=decimal(0, 1, off=-1),
        default=1.0,
        metavar="P",
        help="keep this mass; 1 is off",
    )
    add(
        "--min-p",
        type=decimal(0, 1, off=-1),
        default=0.0,
        metavar="P",
        help="share of the likeliest; 0 is off",
    )
    add(
        "--repetition-penalty", type=decimal(0.01, 100), default=1.0, metavar="R",
        help="above 1, what was there already gets less likely",
    )  # fmt: skip
    add(
        "--seed",
        type=whole(0, 2**64 - 1),
        default=0,
        metavar="N",
        help="same seed, same answer (see --reproducible)",
    )
    add(
        "--logprobs",
        type=whole(0),
        metavar="N",
        help="with --json: log-probabilities of the N best",
    )
    add(
        "--no-speculation", action="store_false", dest="speculation",
        help="do not guess from repeated text; costs time, changes nothing else",
    )  # fmt: skip


def add_context(sub: argparse.ArgumentParser) -> None:
    """What of a repository is put before the prompt."""
    group = sub.add_argument_group("repository (the model was trained on prompts with these)")
    group.add_argument("--repo-name", metavar="NAME", help="such as owner/project")
    group.add_argument(
        "--repo-file", action="append", default=[], metavar="FILE",
        help="another file of it, as context; may be given again",
    )  # fmt: skip
    group.add_argument("--path", metavar="PATH", help="path of the edited file in the repository")


def add_model(sub: argparse.ArgumentParser) -> None:
    """How a model is opened."""
    group = sub.add_argument_group("model")
    group.add_argument(
        "--context", type=whole(1), metavar="TOKENS", help="prompt and answer (default: as trained)"
    )
    group.add_argument(
        "--threads", type=whole(1), metavar="N", help="default: the cores we may use"
    )
    group.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu",
        help="what runs the model; one that is not there is an error (default: cpu)",
    )  # fmt: skip
    group.add_argument(
        "--gpu-layers", type=whole(0), default=0, metavar="N",
        help="GGUF: how many layers to put on a GPU, where not all",
    )  # fmt: skip
    group.add_argument(
        "--variant", metavar="NAME",
        help="which of several that share the bundle; auto: the best that the free memory is "
        "enough for (default: the best where it was packed)",
    )  # fmt: skip
    group.add_argument(
        "--reproducible", action="store_true",
        help="the same answer to the bit, each time, whatever came before it: guesses nothing, and "
        "reuses whole groups of 64 tokens of earlier prompts alone",
    )  # fmt: skip
    group.add_argument(
        "--no-verify", action="store_false", dest="verify",
        help="skip the hashes of a bundle that was just checked",
    )  # fmt: skip
