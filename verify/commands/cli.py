"""The command line: which command, and what its ending means."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from verify import __version__
from verify.commands.interrupts import interrupts
from verify.commands.streams import discard_output, say_in_any_encoding
from verify.errors import BadInput, Unjudged
from verify.options.table import COMMANDS
from verify.ranks.launched.launch import launched, speaks
from verify.surroundings import check_distribution, check_surroundings
from verify.text import one_line

_STARTS_RANKS = ("faults", "fuzz", "bench")
EXIT_BAD_INPUT = 2
EXIT_UNKNOWN = 3
_LONGEST_USAGE = 300
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The value may be of any length, and the fix must be seen.
        shown = message if len(message) <= _LONGEST_USAGE else f"{message[:_LONGEST_USAGE]}..."
        raise BadInput(f"{shown}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    0 pass, 1 fail, 2 bad input, 3 unknown; 130 after Ctrl-C and 143 after SIGTERM, when no verdict is given, nothing
    more is written and every process that was started has ended. Of the commands' documents only that of ``verify
    bench --json`` is written before the end: it keeps what has been measured so far.
    """
    with interrupts(restore=arguments is not None, leave=_leave if arguments is None else None) as signals:
        try:
            return _main(list(sys.argv[1:] if arguments is None else arguments))
        except BaseException as error:
            # A library may have made something else of the interrupt while it was being imported.
            if signals.received is None and not isinstance(error, KeyboardInterrupt):
                if not isinstance(error, Exception):
                    raise
                # Python would end with 1, which says that a check failed.
                traceback.print_exc()
                print("verify: the above is a fault of verify itself; nothing was judged", file=sys.stderr)
                return EXIT_UNKNOWN
            _end_ranks()
            return signals.exit_status


def _end_ranks() -> None:
    """After an interrupt: every process that was started ends, and one line says why."""
    if (local := sys.modules.get("verify.ranks.local.forkserver")) is not None and hasattr(local, "close_fork_server"):
        local.close_fork_server()
    print("verify: interrupted", file=sys.stderr, flush=True)


def _leave(status: int) -> None:
    """Ends this process at once, from wherever it is."""
    _end_ranks()
    os._exit(status)


def _main(given: list[str]) -> int:
    try:
        say_in_any_encoding()
        parsed = _parse(given)
        check_surroundings()
        check_distribution(Path(__file__).parents[2])
        _require_own_ranks(parsed.command)
        execute = importlib.import_module(f"verify.commands.{parsed.command}").execute
        try:
            return int(execute(parsed))
        except SystemExit:  # So rich answers a reader that has gone: with 1, which says that a check failed.
            return EXIT_UNKNOWN
    except BadInput as error:
        if speaks():  # Of many processes with the same command line, one is enough.
            print(f"verify: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Unjudged as reason:
        print(f"verify: {one_line(str(reason))}", file=sys.stderr)
        return EXIT_UNKNOWN
    except BrokenPipeError:
        # Whoever read our output has gone; the verdict has nowhere to go but the exit status of a failure to judge.
        discard_output()
        return EXIT_UNKNOWN
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        discard_output()
        place = f" to {error.filename}" if error.filename else ""
        print(f"verify: nothing more could be written{place}: {error.strerror}; make room and start again",
              file=sys.stderr)  # fmt: skip
        return EXIT_UNKNOWN


def _require_own_ranks(command: str) -> None:
    """Commands that start ranks themselves would each do so in every process of a launch."""
    if command in _STARTS_RANKS and (launch := launched()) is not None:
        raise BadInput(
            f"verify {command} was started by {launch.launcher} in {launch.world_size} processes, expected one, "
            "since it starts its ranks itself; start it without a launcher (verify run takes one)"
        )


def _parse(given: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="verify",
        description="Does every rank hold the same x_t?",
        epilog="exit status: 0 pass, 1 fail, 2 bad input or usage, 3 unknown: it could not be judged",
    )
    parser.add_argument("--version", action="version", version=f"verify {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    chosen = next((word for word in given if not word.startswith("-")), "")
    if chosen and chosen not in COMMANDS:
        fix = f"{_meant(chosen, COMMANDS)}see verify --help"
        raise BadInput.of("the command", chosen, f"one of {', '.join(COMMANDS)}", fix)
    for name, command in COMMANDS.items():
        examples = "examples:\n" + "\n".join(f"  {line}" for line in command.examples)
        added = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary.capitalize() + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.configure(added)
        if name == chosen and {"-h", "--help"} & set(given):
            added.epilog = "\n\n".join((*_own_options(given), examples))
    parsed, unknown = parser.parse_known_args(given)
    if parsed.command is None:
        parser.print_help()
        raise BadInput(f"no command was named, expected one of {', '.join(COMMANDS)}; name one")
    called = f"verify {parsed.command}"
    if unknown:
        flags = [option.flag for option in COMMANDS[parsed.command].options]
        fix = f"{_meant(unknown[0].partition('=')[0], flags)}see {called} --help"
        raise BadInput.of("an argument", unknown[0], f"an option of {called}", fix)
    for option in COMMANDS[parsed.command].options:
        # Most often a variable of a shell script that was never set; a positional argument says so by itself.
        if option.flag.startswith("--") and "" in _each(getattr(parsed, option.name)):
            raise BadInput.of(option.flag, "", "a value", f"give one or leave it out; see {called} --help")
    return parsed


def _own_options(given: Sequence[str]) -> Iterator[str]:
    """Help on the options of the target that a command line names."""
    named = [other for word, other in pairwise(given) if word == "--target"]
    named += [word.partition("=")[2] for word in given if word.startswith("--target=")]
    for name in named[-1:]:
        from verify.targets.finding import options_told

        lines = options_told(name) or ["it has none"]
        yield f"options of target {name}, for --target-option:\n" + "\n".join(f"  {line}" for line in lines)


def _each(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _meant(word: str, known: Iterable[str]) -> str:
    """A suggestion, where what was written is close to something known."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]}? " if near else ""
