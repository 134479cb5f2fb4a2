"""The command that serves the model over HTTP: flags to settings, and what to tell the user."""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
from pathlib import Path

from runtimes.cli.invocation import Invocation
from runtimes.cli.model import chosen_manifest, open_model
from runtimes.cli.server_log import tolerant_output
from runtimes.errors import UsageError
from runtimes.server import dialects
from runtimes.server.app import Settings, create_app
from runtimes.server.descriptors import reserve
from runtimes.server.http.guard import Access, is_loopback
from runtimes.server.listen import Address, make_server, open_socket, run, url_of
from runtimes.server.request import ServerDefaults
from runtimes.server.service import Service, served_model
from runtimes.trust.console import NOTICE

KEY_VARIABLE = "STARPACK_API_KEY"
MIN_KEY_CHARACTERS = 16  # guessed: too long to be found by trying


def serve(args: argparse.Namespace, call: Invocation) -> None:
    """Serve until interrupted."""
    # a program that reads --json has to learn the address
    with tolerant_output(needs_stdout=call.console.as_json):
        _serve(args, call)


def _serve(args: argparse.Namespace, call: Invocation) -> None:
    console = call.console
    access = _access(args)
    address = _address(args, access)
    settings = Settings(
        access=access,
        max_body_bytes=args.max_body,
        request_s=args.request_time,
        supersede=args.supersede,
        log_prompts=args.log_prompts,
    )
    defaults = _defaults(args)
    if not console.as_json and not args.quiet:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    reserve(address.connections)
    manifest = chosen_manifest(args, call)
    with open_socket(address) as listening, open_model(args, call, manifest) as runtime:
        model = served_model(call.bundle, manifest, runtime, args.name)
        service = Service(runtime, model, defaults, queue_jobs=args.queue, slots=args.slots)
        server = make_server(create_app(service, settings), address)
        url = url_of(address, listening)
        if console.as_json:
            console.data({"url": url, "model": model.name})
            sys.stdout.flush()  # whoever waits for the address would wait for ever
        else:
            console.remark(NOTICE)
            console.text(f"serving {model.name} at {url}\n")
            console.remark(_client_settings(url))
        if access.keys and address.tls_cert is None and not is_loopback(address.host):
            console.warn("without TLS, keys and code are sent in clear text; see --tls-cert")
        run(server, listening)


def _client_settings(url: str) -> str:
    lines = ["point your client at it:"]
    for dialect in dialects.DIALECTS:
        for client, setting in dialect.clients.items():
            lines.append(f"  {client:16} {setting.replace('{url}', url)}")
    return "\n".join(lines) + "\n"


def _defaults(args: argparse.Namespace) -> ServerDefaults:
    if args.suffix_share + args.extras_share > 1:
        raise UsageError(
            f"--suffix-share {args.suffix_share} and --extras-share {args.extras_share} reserve "
            "more than the whole prompt",
            expected="a sum of at most 1",
        )
    return ServerDefaults(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        raw_fim=args.raw_fim,
        over_context=args.over_context,
        suffix_fraction=args.suffix_share,
        extras_fraction=args.extras_share,
    )


def _address(args: argparse.Namespace, access: Access) -> Address:
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UsageError(
            "--tls-cert and --tls-key belong together", expected="both of them, or none"
        )
    if not is_loopback(args.host) and not access.keys:
        raise UsageError(
            f"without an API key, anybody who reaches {args.host} could use the model",
            expected="an API key, or the loopback interface",
            remedy=f"name a file of keys with --api-key-file, or set {KEY_VARIABLE}; "
            "to make a key: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return Address(
        host="127.0.0.1" if args.host == "localhost" else args.host,
        port=args.port,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        connections=args.connections,
        grace_s=args.grace,
    )


def _access(args: argparse.Namespace) -> Access:
    """Keys never come from the command line, which every user of a machine can read."""
    texts = [os.environ.get(KEY_VARIABLE, "")]
    if args.api_key_file is not None:
        texts.append(_read_keys(args.api_key_file))
    keys = tuple(line.strip() for text in texts for line in text.splitlines() if line.strip())
    for key in keys:
        if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or len(key.split()) != 1:
            raise UsageError(
                "an API key is too short, or has characters that an HTTP header cannot carry",
                where=args.api_key_file or KEY_VARIABLE,
                expected=f"{MIN_KEY_CHARACTERS} or more ASCII characters, one key a line",
            )
    return Access(keys, frozenset(args.allow_origin))


def _read_keys(file: Path) -> str:
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the API keys: {error}", where=file) from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise UsageError(
            "other users may read the file of API keys", where=file, remedy=f"chmod 600 {file}"
        )
    if not text.strip():
        raise UsageError("the file of API keys is empty", where=file)
    return text
