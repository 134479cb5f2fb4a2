"""Every failure that starpack explains, with its exit code. The packager adds its own kinds."""

from __future__ import annotations

LINES = "\n\t"
IF_MEMORY_RAN_OUT = "if memory ran out, use a smaller --context or recipe"  # a remedy


class StarpackError(Exception):
    """Root of all explained failures: what went wrong, where, what was expected, the remedy."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.expected = None if expected is None else str(expected)
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [_printable(self.what, also=LINES)]
        for name in ("where", "expected", "remedy"):
            value = getattr(self, name)
            if value is not None:
                lines.append(
                    f"  {name}: {_printable(value, also='' if name == 'where' else LINES)}"
                )
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The same facts for `--json`."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "remedy": self.remedy,
        }


def _printable(text: str, also: str) -> str:
    """A text that may hold anything, such as a terminal's commands; `also`: what stays as it is."""
    return "".join(c if c.isprintable() or c in also else ascii(c)[1:-1] for c in text)


class UsageError(StarpackError):
    """A flag, argument or request that makes no sense."""

    exit_code = 2


class IntegrityError(StarpackError):
    """A file that is missing, changed, unknown or outside its folder; a malformed manifest."""

    exit_code = 5


class OfflineError(StarpackError):
    """The network was needed and is not there, or was used where that is not allowed."""

    exit_code = 6


class DeviceError(StarpackError):
    """The engine, device or memory that was asked for is not there."""

    exit_code = 7


class WindowError(DeviceError):
    """The installed engine cannot keep the sliding window exact for this context."""


class LogitsError(DeviceError):
    """The engine returned logits that are not numbers."""


class ContextError(UsageError):
    """The request does not fit the context the model was opened with."""


class RewindError(StarpackError):
    """A backend was asked to forget more than it can forget exactly."""


class Cancelled(StarpackError):
    """The caller cancelled, or ran out of the time it allowed."""

    exit_code = 130


class Superseded(Cancelled):
    """A newer request of the same client has taken this one's place."""


class BusyError(StarpackError):
    """The queue is full, or the wait was too long: worth another try after `retry_after_s`."""

    def __init__(self, what: str, *, retry_after_s: int, remedy: str | None = None) -> None:
        super().__init__(what, remedy=remedy)
        self.retry_after_s = retry_after_s


class StoppingError(StarpackError):
    """The server is being stopped and takes nothing more."""


def explained(
    error: StarpackError | OSError | KeyboardInterrupt, after_interrupt: str | None = None
) -> StarpackError:
    """What ended a command early, as an error with a remedy; after_interrupt: that of Ctrl-C."""
    match error:
        case StarpackError():
            return error
        case OSError():
            return StarpackError(
                str(error), remedy="check the path, the permissions and the space on the disk"
            )
    return Cancelled("interrupted", remedy=after_interrupt)
