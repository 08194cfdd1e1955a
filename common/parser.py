"""The parser of every command, made from its flags: errors of one line, no abbreviations, help with
defaults.
"""

import argparse
from dataclasses import MISSING
from typing import NoReturn

from common.errors import one_line
from common.flags import Flag, flag_groups, flags_of
from common.ranks import is_main


class Parser(argparse.ArgumentParser):
    """The parser of every command: an error is one line, and no flag may be abbreviated."""

    def __init__(self, formatter_class=argparse.RawDescriptionHelpFormatter, **settings):
        super().__init__(formatter_class=formatter_class, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print `message` as one line and exit with status 2."""
        if message.startswith("unrecognized arguments") and ".tar" in message:
            message = "put the pattern of shards into quotes: 'shards/{00000..00331}.tar'"
        self.exit(2, f"error: {one_line(message)}; see --help\n")

    def _print_message(self, message: str, file=None) -> None:
        if is_main():  # each process of a run has the same command line
            super()._print_message(message, file)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of a description, and adds the defaults that tell something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return help_with_default(action.help, action.default)


class Switch(argparse.Action):
    """The flags `--name` and `--no_name`, which set a bool.

    A value that a checkpoint has switched on can so be switched off.
    """

    def __init__(self, option_strings: list[str], dest: str, **settings):
        super().__init__([*option_strings, f"--no_{dest}"], dest, nargs=0, **settings)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


def help_with_default(help: str, default: object) -> str:
    """Return the help of a flag, followed by its default.

    The help is returned as it is where the default is none, off or empty, or where the help names
    the default itself. As argparse asks for it, a "%" in the default is doubled.
    """
    # Not `in`: 0 equals False, and is a default that tells something.
    tells_nothing = (default is MISSING or default is None or default is False
                     or default in ("", argparse.SUPPRESS))
    if tells_nothing or "default:" in help:
        return help
    return f"{help} (default: {value_text(default).replace('%', '%%')})"


def value_text(value: object) -> str:
    """Return a value as the command line would give it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def build_parser(
    options_class: type, description: str, epilog: str | None = None,
    checkpoint_sets_defaults: bool = False,
) -> Parser:
    """Return the parser of a command. It gives the values on the command line, without defaults.

    Args:
        options_class: the options of the command.
        description: the text that its --help begins with.
        epilog: the text that its --help ends with.
        checkpoint_sets_defaults: whether the command reads a checkpoint before all else; its help
            then names no default that the checkpoint replaces.
    """
    groups = flag_groups(options_class)
    # A usage that lists every flag would fill the screen before an error is told.
    usage = "%(prog)s"
    for flag in (flag for flags in groups.values() for flag in flags if flag.positional):
        usage += f" {flag.name}" if flag.default is MISSING else f" [{flag.name}]"
    parser = Parser(HelpFormatter, usage=f"{usage} [flags]", description=description,
                    epilog=epilog)
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            shown = not (flag.from_checkpoint and checkpoint_sets_defaults)
            add_flag(parser if flag.positional else group, flag,
                     help=help_with_default(flag.help, flag.default) if shown else flag.help)
    return parser


def add_flag(container: argparse._ActionsContainer, flag: Flag, **settings) -> None:
    """Add a flag to a parser, or to a group of its flags.

    Args:
        container: the parser or group.
        flag: of `flags_of`.
        settings: arguments of `add_argument`, in place of those that follow from the flag.
    """
    if flag.positional:
        # Of a positional argument that is not given, argparse converts the default.
        optional = {} if flag.default is MISSING else dict(nargs="?", default=None)
        container.add_argument(flag.name, **dict(help=flag.help, type=flag.value_type) | optional
                               | settings)
        return
    settings = dict(dest=flag.name, help=flag.help, default=argparse.SUPPRESS) | settings
    if flag.value_type is bool:
        settings["action"] = Switch if flag.from_checkpoint else "store_true"
    else:
        settings |= dict(type=flag.value_type, choices=flag.choices, metavar=flag.metavar)
        if flag.words:
            settings["type"] = flag.read
        if flag.is_list:
            settings["nargs"] = "*"
        if flag.const is not None:
            settings |= dict(nargs="?", const=flag.const)
    container.add_argument(f"--{flag.name}", *flag.aliases, **settings)


def add_flags(
    container: argparse._ActionsContainer, options_class: type, *names: str
) -> None:
    """Add flags of a class, with their defaults, to a parser that `build_parser` did not make.

    Args:
        container: the parser, or a group of its flags.
        options_class: the class that declares or inherits the flags.
        names: the names of the flags; all flags of the class where there are none.
    """
    flags = flags_of(options_class)
    for name in names or flags:
        add_flag(container, flags[name], default=flags[name].default)


def given_values(parser: Parser, argv: list[str] | None) -> dict[str, object]:
    """Return what the command line itself gives, by the name of the option."""
    return {name: value for name, value in vars(parser.parse_args(argv)).items()
            if value is not None}  # None of a positional argument that was left out
