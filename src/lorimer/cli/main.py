"""`lorimer`: the commands put together, and the one place where an error becomes a line and an exit code."""

import errno
import os
import sys

import typer

from lorimer import __version__
from lorimer.cli import (
    adapters,
    audit,
    backup,
    chat,
    data,
    doctor,
    erase,
    evaluate,
    export,
    impact,
    init,
    judge,
    keys,
    merge,
    plan,
    quickstart,
    roles,
    runs,
    serve,
    suites,
    train,
)
from lorimer.cli.console import error_console
from lorimer.errors import LorimerError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    help="From raw examples to a governed, served LoRA adapter, on hardware you already own.",
    epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 gate failed, 4 awaiting approval, 5 inconclusive, 6 integrity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (quickstart.quickstart, init.init, plan.plan, train.train, evaluate.evaluate, serve.serve, chat.chat, doctor.doctor):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(adapters.app, name="adapters")
app.command(help=backup.BACKUP_HELP)(backup.backup)
app.command(help=backup.RESTORE_HELP)(backup.restore)
app.command(help=backup.PUBLISH_HELP)(backup.publish)
adapters.app.command(help=merge.HELP)(merge.merge)
adapters.app.command(help=export.HELP)(export.export)
adapters.app.command("exports", help=export.LIST_HELP)(export.list_exports)
adapters.app.command(help=impact.HELP)(impact.impact)
app.command(help=erase.HELP)(erase.erase)
app.add_typer(erase.app, name="erasures")
app.add_typer(suites.app, name="suites")
app.add_typer(runs.app, name="runs")
app.add_typer(judge.app, name="judges")
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(roles.app, name="roles")
app.add_typer(roles.trust_app, name="trust")


@app.callback(invoke_without_command=True)
def version(show: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    """Options of the program itself."""
    if show:
        print(f"lorimer {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command; every failure the reader can act on is one line on stderr."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing leaves the machine unless the user says so
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
    try:
        result = app(arguments, prog_name="lorimer", standalone_mode=False)
    except LorimerError as exc:
        return _fail(str(exc), exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        result = EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILURE
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        return _fail(f"cannot write ({exc}): free some space, check permissions, or point LORIMER_HOME elsewhere", EXIT_FAILURE)
    except Exception as exc:
        show = getattr(exc, "format_message", None)  # typer's own: a wrong flag or argument
        if show is None:
            raise
        return _fail(
            f"{show()} (`lorimer {' '.join(_words(arguments))} --help` shows how)".replace("  ", " "), getattr(exc, "exit_code", 2)
        )
    if result == EXIT_INTERRUPTED:
        return _fail("interrupted: what was finished is kept, nothing is half-written; run the command again to begin anew", EXIT_FAILURE)
    return result if isinstance(result, int) else 0


def _words(arguments: list[str]) -> list[str]:
    """The leading command words, for a hint."""
    words = []
    for argument in arguments[:2]:
        if argument.startswith("-") or not argument.isalpha():
            break
        words.append(argument)
    return words


def _fail(message: str, code: int) -> int:
    error_console.print(f"lorimer: {message}", markup=False, highlight=False, style="red")
    return code
