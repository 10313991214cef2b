"""Entry point: finds the command, runs it, and turns every error into one line and an exit code.

Importing this module loads click and nothing else of weight; each command's module is imported when it is called.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from obm_cli import output
from obm_format.errors import EXIT_INTERRUPTED, EXIT_USAGE, ObmError, UsageError

# command -> what it does; a test holds these lines equal to the commands' own help
COMMANDS: dict[str, str] = {
    "compress": "Compress a fine-tune into an expert.",
    "inspect": "Show what is in an expert, from its header.",
    "verify": "Check every byte of an expert, and its backbone.",
    "stats": "Measure every tensor of an expert: bytes, alphas, signs, shift.",
    "diff": "Show how two experts differ.",
    "convert": "Convert a fine-tune of another format into an expert, or back.",
    "materialize": "Rebuild a checkpoint folder from a backbone and experts.",
    "route": "Train, evaluate and use a router.",
    "backbone": "Register backbones, list them, fetch their weights.",
    "push": "Publish an expert in a registry.",
    "pull": "Fetch an expert from a registry.",
    "ls": "List the experts of a registry.",
    "tag": "Give a published expert another name.",
    "log": "Show how a tag moved.",
    "rm": "Remove a tag or a published expert.",
    "yank": "Mark a published expert as not to be used.",
    "sign": "Sign an expert, or make a key to sign with.",
    "login": "Store a token for a registry.",
    "cache": "Show, shrink and check the cache of pulled experts.",
    "gc": "Delete stored bytes that nothing refers to.",
    "fsck": "Check the registry's catalog against its bytes.",
    "serve": "Serve the registry over HTTP.",
    "token": "Make, list and revoke the tokens that a server takes.",
}


class _LazyGroup(click.Group):
    """A group whose commands live in `obm_cli.commands.<name>` and are imported on call."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"obm_cli.commands.{cmd_name}").command
        assert isinstance(command, click.Command)  # noqa: S101 - our own modules
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}; {_nearest(args[0])}`obm --help` lists all.")
        return super().resolve_command(ctx, args)


def _nearest(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=3)
    return f"did you mean {' or '.join(close)}? " if close else ""


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from importlib import metadata

        click.echo(f"obm {metadata.version('obm-format')}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Store fine-tunes as 1-bit task vectors, share them, and merge them back into weights."""


def main(argv: list[str] | None = None) -> int:
    """Run `obm` with `argv` (default: the process's own arguments) and return the exit status."""
    args = sys.argv[1:] if argv is None else argv
    try:
        result = cli.main(args=args, prog_name="obm", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.exceptions.Abort):
        error = ObmError("interrupted", "stopped by the user; nothing is half written")
    except click.ClickException as failure:
        error = _usage_error(failure)
    except ObmError as failure:
        error = failure
    except BrokenPipeError:
        # whoever read our output has gone; a second write at exit would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_INTERRUPTED
    except OSError as failure:
        error = _os_error(failure)
    output.report_error(error, as_json="--json" in args)
    return error.exit_code


def _usage_error(failure: click.ClickException) -> ObmError:
    hint = None
    if isinstance(failure, click.UsageError) and failure.ctx is not None:
        hint = f"see `{failure.ctx.command_path} --help`"
    error = UsageError("usage", failure.format_message().rstrip("."), hint=hint)
    assert error.exit_code == EXIT_USAGE  # noqa: S101 - the table of reasons is ours
    return error


def _os_error(failure: OSError) -> ObmError:
    where = str(failure.filename) if failure.filename else None
    text = failure.strerror or str(failure)
    if failure.errno == errno.ENOENT:
        return ObmError("not_found", "no such file or folder", where=where)
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return ObmError("disk_full", text, where=where, hint="free some space and run the command again")
    return ObmError("io", text, where=where)
