"""Runs one program under limits that it sets on itself: the inside of sandbox.py beside it.

Started as `python -I -S -B sandbox_child.py CPU_S MEMORY_BYTES DROP` in a process of its own. The
first line of its standard input is a word, the rest is the program. Only a program that comes to
its end is answered with `WORD passed`, any other with `WORD failed: REASON`; both fit into a pipe.
A program that ends the process itself gives no answer.
"""

import os
import resource
import sys

REASON_CHARACTERS = 300
NOBODY = 65534  # specified: the kernel's own overflow id, on Linux
OPEN_FILES = 64  # guessed: imports need a handful
REFUSED = ("os.", "shutil.", "socket.", "subprocess.", "ctypes.", "fcntl.", "pty.", "syslog.")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
READS = frozenset(("os.listdir", "os.scandir", "os.walk", "os.fwalk"))  # imports list folders


def limit(cpu_s: int, memory_bytes: int) -> None:
    """Lower what this process may use; the hard limits too, so it cannot raise them again."""
    for kind, maximum in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # of any file that is written
        (resource.RLIMIT_NPROC, 0),  # no further process or thread; the kernel exempts root
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
    ):
        resource.setrlimit(kind, (maximum, maximum))


def drop_root() -> None:
    """Go on as nobody, who owns nothing and whose processes the kernel limits."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook (PEP 578): no file is changed, nothing is started, nothing is sent."""
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or flags & WRITES:
            raise PermissionError(f"refused: open {path!r} for writing")
    elif event.startswith(REFUSED) and event not in READS:
        raise PermissionError(f"refused: {event}")


def run(program: str) -> str:
    """The answer for one program."""
    try:
        code = compile(program, "<candidate>", "exec", dont_inherit=True)
        exec(code, {"__name__": "candidate"})
    except BaseException as error:  # SystemExit too: the tests after it did not run
        return f"failed: {type(error).__name__}: {error}"[:REASON_CHARACTERS]
    return "passed"


def main() -> None:
    cpu_s, memory_bytes, drop = (int(argument) for argument in sys.argv[1:])
    word, program = sys.stdin.buffer.read().decode().split("\n", 1)
    answer_fd = os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what the program prints goes nowhere
        os.dup2(silence, standard)
    os.close(silence)
    if drop:
        drop_root()
    limit(cpu_s, memory_bytes)
    sys.addaudithook(refuse)
    answer = run(program)
    os.write(answer_fd, f"{word} {answer}".encode(errors="replace"))
    os._exit(0)  # whatever the program left to be done at the end is not done


if __name__ == "__main__":
    main()
