"""``verify completion``: a script with which a shell completes commands and options."""

from __future__ import annotations

import argparse

from verify.errors import BadInput
from verify.options.table import COMMANDS

_BASH = """\
# For bash: eval "$(verify completion bash)"
_verify() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} words
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; else
        case $command in
{cases}
        esac
    fi
    case $word in -*|"") ;; *) [ "$COMP_CWORD" -gt 1 ] && words= ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _verify verify
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
SHELLS = ("bash", "zsh")


def execute(arguments: argparse.Namespace) -> int:
    """Prints the script and returns 0."""
    if arguments.shell not in SHELLS:
        raise BadInput.of("the shell", arguments.shell, f"one of {', '.join(SHELLS)}", "choose one")
    print(script(arguments.shell), end="")
    return 0


def script(shell: str) -> str:
    """The script for a shell; zsh takes bash's."""
    cases = [
        f'            {name}) words="{" ".join(option.flag for option in command.options if option.flag[0] == "-")}" ;;'
        for name, command in COMMANDS.items()
    ]
    text = _BASH.format(commands=" ".join(COMMANDS), cases="\n".join(cases))
    return (_ZSH if shell == "zsh" else "") + text
