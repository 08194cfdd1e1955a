"""How a flag is declared: once, as a field of a dataclass, by `option`.

Name, annotation and default of the field are those of the flag, and `option` adds its help, its
range, and whether a checkpoint may set it. A group of flags is a dataclass with a `title`, and the
options of a command are a class that inherits its groups:

    @dataclass(kw_only=True)
    class LossOptions:
        title = "loss"
        margin: float = option(0.2, "margin of the hinge", low=0, high=10, from_checkpoint=True)

From the fields follow the command's parser (`common.parser.build_parser`), the check of its values
(`check_values`), the options that a checkpoint may set (`names_from_checkpoint`) and the flags that
a resumed command must repeat (`flags_to_repeat`). A field may be an int, a float, a bool, a text, a
Path, a list of these, or one of them and None.
"""

import dataclasses
import inspect
import shlex
import typing
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from types import NoneType

from common.errors import InputError


def option(
    default: object, help: str, *, choices: Collection | None = None,
    low: float | None = None, high: float | None = None,
    above: float | None = None, below: float | None = None,
    from_checkpoint: bool = False, fixed: bool = False, exclusive: bool = False,
    repeat: bool = False, aliases: tuple[str, ...] = (), metavar: str | None = None,
    const: str | None = None, positional: bool = False, words: tuple[str, ...] = (),
):
    """Return a dataclass field that declares a flag.

    Args:
        default: the published setting; `MISSING` for a positional argument that must be given.
        help: what the flag does and its unit, as --help prints it.
        choices: the values that a text may have.
        low, high: the least and the largest value of a number, or of each number of a list.
        above, below: ends of the range that a number must not reach.
        from_checkpoint: whether a checkpoint may set it. No path to read or to write and no
            permission may come from there. A bool becomes two flags, `--name` and `--no_name`.
        fixed: whether a run that goes on must keep the value that its checkpoint has.
        exclusive: whether another value than the default is refused where `--loss` names an
            objective that does not declare the flag.
        repeat: whether a resumed command must be given the flag again.
        aliases: further names of the flag, with their dashes.
        metavar: the name of the value in the help.
        const: the value of the flag where none follows it.
        positional: whether the value stands on the command line without a flag.
        words: texts that a number may be given as, such as "auto". A new run replaces them by a
            number at its start, which its checkpoints then keep.
    """
    declared = dict(
        help=help, choices=choices, low=low, high=high, above=above, below=below,
        from_checkpoint=from_checkpoint, fixed=fixed, exclusive=exclusive, repeat=repeat,
        aliases=aliases, metavar=metavar, const=const, positional=positional, words=words)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=declared)
    return field(default=default, metadata=declared)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag as its field declares it: `option` says what the attributes mean."""

    name: str
    value_type: type  # of a value, or of each value of a list
    is_list: bool
    may_be_none: bool
    default: object
    help: str
    choices: Collection | None
    low: float | None
    high: float | None
    above: float | None
    below: float | None
    from_checkpoint: bool
    fixed: bool
    exclusive: bool
    repeat: bool
    aliases: tuple[str, ...]
    metavar: str | None
    const: str | None
    positional: bool
    words: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name by which an error calls the flag."""
        return self.name if self.positional else f"--{self.name}"

    def check(self, value: object) -> None:
        """Raise InputError unless `value` is one that the flag can give.

        Its type is checked too: a checkpoint can hold anything.
        """
        if value is None and self.may_be_none or value in self.words:
            return
        values = value if self.is_list and isinstance(value, list) else [value]
        if self.is_list is not isinstance(value, list) or not all(map(self.is_of_type, values)):
            raise InputError(f"{self.title} {str(value)[:80]}: not of its type{self.choices_text}")
        if self.choices is not None and value not in self.choices:
            raise InputError(f"{self.title} {value[:80]}: not among its choices{self.choices_text}")
        if not all(map(self.is_in_range, values)):
            raise InputError(f"{self.title} {str(value)[:30]}: must be {self.range_text}")

    def read(self, text: str) -> object:
        """Return the value that a text of the command line gives.

        Raises:
            ValueError: the text is no value of the flag's type.
        """
        return text if text in self.words else self.value_type(text)

    def is_of_type(self, value: object) -> bool:
        """Return whether `value` has the flag's type; an int counts as a float, a bool does not."""
        types = (int, float) if self.value_type is float else self.value_type
        return isinstance(value, types) and isinstance(value, bool) is (self.value_type is bool)

    def is_in_range(self, value: object) -> bool:
        """Return whether `value` lies in the flag's range; NaN lies in none."""
        return ((self.low is None or value >= self.low)
                and (self.high is None or value <= self.high)
                and (self.above is None or value > self.above)
                and (self.below is None or value < self.below))

    @property
    def choices_text(self) -> str:
        """The end of an error that lists the flag's choices, or nothing."""
        return "" if self.choices is None else f", one of {', '.join(self.choices)}"

    @property
    def range_text(self) -> str:
        """The flag's range: "at least 0 and below 1"."""
        ends = (("at least", self.low), ("above", self.above), ("at most", self.high),
                ("below", self.below))
        return " and ".join(f"{name} {end:,}" if isinstance(end, int) else f"{name} {end:g}"
                            for name, end in ends if end is not None)


def flags_of(options_class: type) -> dict[str, Flag]:
    """Return the flags that a class of options declares or inherits, by name.

    Fields that `option` did not make are no flags, and are left out.
    """
    hints = typing.get_type_hints(options_class)
    return {declared.name: make_flag(declared, hints[declared.name])
            for declared in dataclasses.fields(options_class) if declared.metadata}


def make_flag(declared: dataclasses.Field, hint: object) -> Flag:
    """Return the flag of a field with the resolved annotation `hint`: `int`, `int | None`,
    `list[int]`, for example."""
    may_be_none = NoneType in typing.get_args(hint)
    if may_be_none:
        [hint] = [part for part in typing.get_args(hint) if part is not NoneType]
    is_list = typing.get_origin(hint) is list
    default = declared.default
    if declared.default_factory is not MISSING:
        default = declared.default_factory()
    return Flag(name=declared.name, value_type=typing.get_args(hint)[0] if is_list else hint,
                is_list=is_list, may_be_none=may_be_none, default=default, **declared.metadata)


def flag_groups(options_class: type) -> dict[str, list[Flag]]:
    """Return the flags of a class of options by the titles of the groups that declare them.

    Raises:
        TypeError: two groups declare a flag of the same name, so that one would be lost.
    """
    flags, groups = flags_of(options_class), {}
    declared_by: dict[str, type] = {}
    for group in options_class.__mro__:
        names = [name for name in inspect.get_annotations(group) if name in flags]
        for name in names:
            if name in declared_by:
                raise TypeError(f"{name} is declared in {group.__name__} and in "
                                f"{declared_by[name].__name__}")
            declared_by[name] = group
        if names:
            groups.setdefault(group.title, []).extend(flags[name] for name in names)
    return groups


def names_from_checkpoint(options_class: type) -> set[str]:
    """Return the names of the options that a checkpoint may set: what describes the model and its
    training. Everything else comes from the command line alone."""
    return {name for name, flag in flags_of(options_class).items() if flag.from_checkpoint}


def flags_to_repeat(options: object) -> str:
    """Return the flags that a resumed command must be given again: " --data_path photos"."""
    words = []
    for name, flag in flags_of(type(options)).items():
        value = getattr(options, name)
        if flag.repeat and value is True:
            words.append(f"--{name}")
        elif flag.repeat and value not in (None, False, flag.default):
            words += [f"--{name}", shlex.quote(str(value))]
    return "".join(f" {word}" for word in words)


def check_values(options: object) -> None:
    """Raise InputError where a value is none that its flag can give."""
    for name, flag in flags_of(type(options)).items():
        flag.check(getattr(options, name))
