"""Sections of settings: frozen dataclasses whose values are checked against the annotations of their fields.

A field states its type, its range and a help text, and has a default value:

    @dataclass(frozen=True)
    class Fade(Control):
        strength: Annotated[float, Between(0, 1), "share of the source that is kept"] = 0.5

Its type is `bool`, `int`, `float`, `str`, a `Literal` of texts, another section, or a base class of sections of
which `Kinds` lists the known ones. A section with an invalid value cannot exist.
"""

import difflib
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    get_args,
    get_origin,
)

from uam_jax.errors import InputError

NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
"""The types of values, as error messages name them."""


class Between(NamedTuple):
    """The range of a number, both ends included."""

    least: float
    most: float

    def __str__(self) -> str:
        return f" from {self.least:g} to {self.most:g}"


Share = Annotated[float, Between(0, 1)]
Count = Annotated[int, Between(0, 1000)]
Scale = Annotated[float, Between(0, 1000)]


@dataclass(frozen=True, eq=False)
class Kinds:
    """The sections that a field may hold: the known ones by name, and any other as "module:Class".

    In a table the key `kind` names the section, and the section's own keys stand beside it.

    Attributes:
      known: the sections that the package offers.
      inline: these keys stand in the table of the section that has the field, not in one of their own.
    """

    known: Mapping[str, type["Section"]]
    inline: bool = False

    def name_of(self, kind: type["Section"]) -> str:
        """The name that `kind` has in a table."""
        names = (name for name, known in self.known.items() if known is kind)
        return next(names, f"{kind.__module__}:{kind.__qualname__}")

    def find(self, key: str, name: Any, base: type["Section"], *, imports: bool) -> type["Section"]:
        """The section of this name, which for "module:Class" is imported.

        Raises:
          InputError: there is none, or a module would have to be imported and `imports` is false.
        """
        if isinstance(name, str) and name in self.known:
            return self.known[name]
        if not isinstance(name, str) or ":" not in name:
            raise InputError(
                f"{key} is {name!r}; the choices are {', '.join(self.known)}, "
                f"or module:Class for a class of your own{suggestion(name, self.known)}"
            )
        if not imports:
            raise InputError(
                f"{key} is {name!r}, which would run a Python module: a manifest and a model's settings may not "
                f"ask for that, since they may come from anyone; choose it with --set {key}={name}, --config "
                "or in Python"
            )
        found = _imported(key, name)
        if not isinstance(found, type) or not issubclass(found, base):
            raise InputError(
                f"{key} is {name!r}, which is no {base.__name__}: derive the class from "
                f"{base.__module__}.{base.__name__}"
            )
        return found


class Field(NamedTuple):
    """The declaration of a setting.

    Attributes:
      type: the type of its value; `str` where there are choices.
      choices: the texts of a `Literal`.
      bounds: the ranges that a number must lie in.
      kinds: the sections that it may hold.
      help: a noun phrase that says what the value is; error messages show it.
    """

    type: type
    choices: tuple[str, ...]
    bounds: tuple[Between, ...]
    kinds: Kinds | None
    help: str

    def checked(self, key: str, value: Any) -> Any:
        """`value`, where an integer given for a number becomes a float.

        Raises:
          InputError: it is of another type, out of range or none of the choices.
        """
        meaning = f" ({self.help})" if self.help else ""
        if self.choices:
            if value in self.choices:
                return value
            raise InputError(
                f"{key} is {value!r}; the choices are {', '.join(filter(None, self.choices))}{meaning}"
                f"{suggestion(value, self.choices)}"
            )
        if self.type is float and type(value) is int:
            value = float(value)
        right = isinstance(value, self.type) and (self.type is bool or type(value) is not bool)
        if right and all(bound.least <= value <= bound.most for bound in self.bounds):
            return value
        wanted = NAMES.get(self.type, "a table") + "".join(map(str, self.bounds))
        raise InputError(f"{key} is {value!r}; it must be {wanted}{meaning}")


@dataclass(frozen=True)
class Section:
    """A table of settings, of which a subclass declares the fields."""

    prefix: ClassVar[str] = ""
    """The beginning of its keys."""
    _files: ClassVar[Mapping[str, str | None]] = {}

    __no_type_check__ = True  # by annotation, in tests: these checks come first and say more

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Now, while its module is imported: later the file may hold other code than this class.
        cls._files = _files_of(cls)

    def __post_init__(self) -> None:
        declared = declarations(type(self))
        for name, item in declared.items():
            value = item.checked(self.prefix + name, getattr(self, name))
            object.__setattr__(self, name, value)
            if item.kinds:
                taken = {"kind", *(declared if item.kinds.inline else ())}
                if twice := taken & declarations(type(value)).keys():
                    kind = item.kinds.name_of(type(value))
                    raise InputError(
                        f"{kind} has a field {min(twice)}, but {value.prefix}{min(twice)} is a key already: "
                        "give the field another name"
                    )

    def to_dict(self) -> dict[str, Any]:
        """As a nested table, which `updated` reads back."""
        table: dict[str, Any] = {}
        for name, item in declarations(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, Section):
                kind = {"kind": item.kinds.name_of(type(value))} if item.kinds else {}
                value = kind | value.to_dict()
            table |= value if item.kinds and item.kinds.inline else {name: value}
        return table

    def updated(self, table: Mapping[str, Any], *, imports: bool = True) -> Self:
        """This section with the values of a nested table, as TOML gives it, in place of its own.

        Args:
          table: values by key.
          imports: a kind "module:Class" may be imported; false for a table that the user did not write.

        Raises:
          InputError: on an unknown key, a wrong type or a value out of range.
        """
        return self._updated(table, list(leaves(self.to_dict())), imports)

    def _updated(self, table: Mapping[str, Any], known: list[str], imports: bool) -> Self:
        """`updated`, where `known` are the keys of the whole config."""
        declared, changes, inline = declarations(type(self)), {}, {}
        holder = _inline(declared)
        for key, value in table.items():
            if key in declared and key != holder:
                changes[key] = _part(declared[key], getattr(self, key), value, known, imports)
            elif holder:
                inline[key] = value
            else:
                key = f"{self.prefix}{key}"
                raise InputError(
                    f"unknown key {key}{suggestion(key, known)}; the keys are {', '.join(known)}"
                )
        if holder and inline:
            part = getattr(self, holder)
            changes[holder] = _part(declared[holder], part, inline, known, imports)
        return replace(self, **changes)


@functools.cache
def declarations(section: type[Section]) -> Mapping[str, Field]:
    """The fields of a section, by name.

    Raises:
      InputError: a field of a user's class is not declared as it must be.
    """
    if inspect.get_annotations(section) and "__dataclass_fields__" not in section.__dict__:
        raise InputError(f"{section.__qualname__} lacks the line @dataclass(frozen=True) above it")
    hints: dict[str, Any] = {}
    for base in reversed(section.__mro__):  # a module may have its annotations as texts
        hints |= inspect.get_annotations(base, eval_str=True)
    found = {}
    for item in fields(section):
        hint = hints[item.name]
        kind, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        kind = str if choices else kind
        where = f"{section.__qualname__}.{item.name}"
        if not (isinstance(kind, type) and (kind in NAMES or issubclass(kind, Section))):
            raise InputError(
                f"{where} is declared as {kind}: a setting is a bool, int, float, str or Literal"
            )
        if item.default is MISSING and item.default_factory is MISSING:
            raise InputError(f"{where} has no default value: give it one")
        found[item.name] = Field(
            kind,
            choices,
            tuple(note for note in notes if isinstance(note, Between)),
            next((note for note in notes if isinstance(note, Kinds)), None),
            next((note for note in notes if isinstance(note, str)), ""),
        )
    return found


def code(section: Section) -> dict[str, str]:
    """Hashes of the files that a section's values were imported from, by module; the package's own are left out.

    They are those of the classes and of their bases, as the files were when the classes were made.

    Raises:
      InputError: a class was not imported from a file.
    """
    found: dict[str, str] = {}
    for module, digest in type(section)._files.items():
        if digest is None:
            raise InputError(
                f"{type(section).__qualname__} comes from {module}, which is no file, so that a job or a kept "
                "inversion could not notice when its code changes: put the class into a file and import it from there"
            )
        found[module] = digest
    for name in declarations(type(section)):
        if isinstance(value := getattr(section, name), Section):
            found |= code(value)
    return found


def identity(section: Section) -> dict[str, Any]:
    """All that decides what a section does, in this process or another: its table, and `code` if there is any."""
    files = code(section)
    # A key with a space is no field's.
    return section.to_dict() | ({"source files": files} if files else {})


def _files_of(section: type[Section]) -> dict[str, str | None]:
    """A hash of the file of each module, besides Python's and the package's own, that a class or a base comes from."""
    modules = dict.fromkeys(base.__module__ for base in section.__mro__)
    own = {__name__.partition(".")[0], *sys.stdlib_module_names}
    return {name: _file_hash(name) for name in modules if name.partition(".")[0] not in own}


def _file_hash(module: str) -> str | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else None
    except OSError:  # a module of an archive, say
        return None


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of the values of a nested table."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def suggestion(word: object, known: Iterable[str]) -> str:
    """A question, if `word` or its last part is close to one of `known`; else nothing."""
    by_end = {key.rpartition(".")[2]: key for key in known}
    candidates = {**by_end, **{key: key for key in by_end.values()}}
    for text in (str(word), str(word).rpartition(".")[2]):
        for match in difflib.get_close_matches(text, candidates, n=1):
            return f" (did you mean {candidates[match]}?)"
    return ""


def _inline(declared: Mapping[str, Field]) -> str | None:
    """The field whose keys stand in the table of the section itself."""
    return next((name for name, item in declared.items() if item.kinds and item.kinds.inline), None)


def _part(item: Field, part: Any, value: Any, known: list[str], imports: bool) -> Any:
    """The new value of a field that holds `part`."""
    if not isinstance(part, Section):
        return value
    if isinstance(value, str) and (item.kinds or _inline(declarations(type(part)))):
        value = {"kind": value}
    if not isinstance(value, Mapping):
        return value
    if item.kinds:
        value = dict(value)
        current = item.kinds.name_of(type(part))
        chosen = value.pop("kind", current)
        if chosen != current:
            kind = item.kinds.find(f"{part.prefix}kind", chosen, item.type, imports=imports)
            part = part if type(part) is kind else kind()
        _refuse_keys_of_others(item.kinds, part, value)
    return part._updated(value, known, imports)


def _refuse_keys_of_others(kinds: Kinds, part: Section, table: Mapping[str, Any]) -> None:
    """Raises an `InputError` for a key that only another known kind has."""
    for key in table.keys() - declarations(type(part)).keys():
        for name, kind in kinds.known.items():
            if key in declarations(kind):
                table_name = part.prefix.removesuffix(".")
                raise InputError(
                    f"{part.prefix}{key} belongs to the kind {name}, and {table_name} is "
                    f"{kinds.name_of(type(part))}: set {part.prefix}kind={name} before it"
                )


def _imported(key: str, name: str) -> Any:
    """The object that "module:Class" names; the module may lie in the current directory."""
    module, _, path = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *path.split(".")]):
        raise InputError(f"{key} is {name!r}: write it as module:Class")
    if os.getcwd() not in sys.path:  # last, so that it hides nothing that is installed
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and f"{module}.".startswith(f"{missing}."):
            raise InputError(
                f"{key} is {name!r}, but there is no module {module} in {os.getcwd()} or among "
                "the installed ones"
            ) from None
        raise InputError(
            f"{key} is {name!r}, but importing {module} failed with {type(error).__name__}: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            file = getattr(sys.modules[module], "__file__", None)
            raise InputError(f"{key} is {name!r}, but {file or module} has no class {path}")
        found = getattr(found, part)
    return found
