"""Settings' dataclasses from flags and YAML files, by jsonargparse; here are the ways of writing and the errors.

``--key value`` or ``--key=value``, ``--group.key value``, ``--switch`` for ``--switch true``, ``--list 1 2 3`` for
``--list=[1,2,3]``, and leading arguments without a flag for one field of the verb's choice.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from adasearch.errors import ConfigError

S = TypeVar("S")
CONFIG_HELP = "YAML file with any of the settings below; flags override it."
SHORT = {  # what else a flag of the verbs that search may be called on the command line, where nothing bears that name
    "latency_target_ms": "search.latency_target_ms",
    "batch_size": "search.latency_batch_size",
    "lengths": "search.latency_lengths",
}
IMPORT_HELP = "your module or file.py to import first, with your operations and the like; may be repeated."


def parse_settings(
    settings: type[S], arguments: Sequence[str], *, prog: str, about: str, positional: str | None = None
) -> tuple[S, list[str]]:
    """The settings and the modules of ``--import``.

    Raises ``ConfigError`` naming place, value and choices for unknown keys, values that do not fit and unreadable
    files; SystemExit(0) after ``--help`` and ``--print_config`` have printed.
    """
    known = dict(settings_fields(settings))
    tokens = spell_out(arguments, {**known, "config": str, "import": str}, prog=prog, positional=positional)
    files = [token.removeprefix("--config=") for token in tokens if token.startswith("--config=")]
    for file in files:
        check_file(file, {**known, "import": list[str]})

    class Parser(ArgumentParser):
        """Says what is wrong in one line that names the setting."""

        def error(self, message: str, ex: Exception | None = None) -> typing.NoReturn:
            flat = " ".join(str(message).split())
            if missing := re.fullmatch(r"the following arguments are required: (\w+)", flat):
                name = missing[1]
                given = f"{prog} {name.upper()}, or --{name}" if name == positional else f"--{name}, or a --config file"
                raise ConfigError(f"{prog}: {name}: none given; choices: {given}; {prog} --help says what it is") from ex
            if unread := re.match(r'Parser key "([\w.]+)": Unable to load config (\S+)', flat):
                choices = f"a YAML file of its settings; --{unread[1]}.KEY VALUE for one of them"
                raise ConfigError(f"{prog}: {unread[1]}: {unread[2]} cannot be read; choices: {choices}") from ex
            found = re.search(r'Parser key "([\w.]+)".*(?:Got|Given) value: (.*)$', flat)
            if found is None:
                raise ConfigError(f"{prog}: {flat}") from ex
            key, value = found.groups()
            is_flag = any(token.startswith((f"--{key}=", f"--{key}+=")) for token in tokens)
            where = prog if is_flag or not files else ", ".join(files)
            expected = type_name(known[key]) if key in known else "another type"
            raise ConfigError(f"{where}: {key}: {value!r} does not fit; expected {expected}") from ex

    usage = f"{prog} {_leading(settings, positional)}[--config FILE] [--key value ...]"
    parser = Parser(prog=prog, usage=usage, description=about, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--import", action="append", default=[], metavar="MODULE", help=IMPORT_HELP)
    parser.add_class_arguments(settings, as_group=False)
    values = parser.instantiate(parser.parse_args(tokens))
    return settings(**{key.name: values[key.name] for key in dataclasses.fields(settings)}), list(values["import"])


def _leading(settings: type, positional: str | None) -> str:
    """The leading argument as a usage line shows it: in brackets where it may be left out, with dots where there may be several."""
    if positional is None:
        return ""
    field = next(key for key in dataclasses.fields(settings) if key.name == positional)
    is_needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    shown = positional.upper() + (" ..." if element_type(typing.get_type_hints(settings)[positional]) is not None else "")
    return f"{shown} " if is_needed else f"[{shown}] "


def settings_fields(settings: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting; a group comes before its members, and its type is a dataclass."""
    for name, kind in typing.get_type_hints(settings).items():
        yield prefix + name, kind
        if dataclasses.is_dataclass(kind):
            yield from settings_fields(kind, f"{prefix}{name}.")


def element_type(kind: Any) -> Any:
    """T of ``list[T]`` or ``list[T] | None``; None for anything else."""
    lists = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is list]
    return typing.get_args(lists[0])[0] if lists else None


def owner_of(key: str, known: dict[str, Any]) -> str | None:
    """The setting that is a mapping with keys of its own choice, of which ``key`` names one; else None."""
    name = key.split(".")[0]
    return name if name != key and typing.get_origin(known.get(name)) is dict else None


def type_name(kind: Any) -> str:
    """As a user would write it: ``int``, ``true or false``, ``list[int] or null``."""
    if typing.get_origin(kind) is dict:
        return "a mapping"
    if typing.get_origin(kind) is list:
        return str(kind)
    if parts := typing.get_args(kind):
        return " or ".join(type_name(part) for part in parts)
    return {type(None): "null", bool: "true or false"}.get(kind, kind.__name__)


def unknown_setting(where: str, key: str, known: Sequence[str]) -> ConfigError:
    """The error for a key that is no setting: its place, the nearest setting, and the choices in its group."""
    group = key.rpartition(".")[0]
    choices = [name for name in known if name.rpartition(".")[0] == (group if group in known else "")]
    near = difflib.get_close_matches(key, known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ConfigError(f"{where}: unknown setting {key!r}{hint}; choices: {', '.join(choices)}")


def check_file(path: str, known: dict[str, Any]) -> None:
    """Raise ``ConfigError`` unless ``path`` is YAML whose every key, nested or dotted, is a setting."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path}: holds {type(data).__name__}, not settings; write lines like 'seed: 42'")

    def check(part: dict[Any, Any], prefix: str) -> None:
        for key, value in part.items():
            if f"{prefix}{key}" not in known:
                raise unknown_setting(path, f"{prefix}{key}", list(known))
            kind = known[f"{prefix}{key}"]
            if value is None and type(None) not in typing.get_args(kind):  # jsonargparse would let it through
                raise ConfigError(f"{path}: {prefix}{key}: null does not fit; expected {type_name(kind)}")
            if isinstance(value, dict) and typing.get_origin(kind) is not dict:
                check(value, f"{prefix}{key}.")

    check(data, "")


def spell_out(arguments: Sequence[str], known: dict[str, Any], *, prog: str, positional: str | None) -> list[str]:
    """The arguments as ``--key=value`` only, files first so that flags override them wherever they stand.

    Raises ``ConfigError`` for a flag that is no setting, a value without a flag and a flag without a value.
    """
    rest, files, flags = list(arguments), [], []
    leading: list[str] = []
    while rest and (rest[0] == "-" or not rest[0].startswith("-")):
        leading.append(rest.pop(0))
    if leading:
        takes_many = positional is not None and element_type(known[positional]) is not None
        if positional is None or (len(leading) > 1 and not takes_many):
            takes = f"one {positional.upper()}" if positional else "flags only"
            raise ConfigError(f"{prog}: takes {takes}; got {' '.join(leading)}")
        flags.append(f"--{positional}={json.dumps(leading) if takes_many else leading[0]}")
    while rest:
        token = rest.pop(0)
        name, equals, value = token.partition("=")
        if name[2:] not in known and SHORT.get(name[2:]) in known:
            name = f"--{SHORT[name[2:]]}"
        key = name[2:].removesuffix("+")  # --seeds+=4 appends to the list of a file
        if token in ("-h", "--help") or name == "--print_config":
            flags.append(token)
            continue
        if not token.startswith("--"):
            raise ConfigError(f"{prog}: {token!r} belongs to no flag; choices: {prog} --help lists them")
        if key not in known and owner_of(key, known) is None:
            raise unknown_setting(prog, key, list(known))
        if not equals:
            value = _take_value(rest, known.get(key), f"{prog}: --{key}")
        (files if key == "config" else flags).append(f"{name}={value}")
    return files + flags


def _take_value(rest: list[str], kind: Any, where: str) -> str:
    """Take from ``rest`` what belongs to a flag of this type; None: a key of a mapping, one value or a list of several."""
    if kind is None and len(rest) > 1 and not any(value.startswith("--") for value in rest[:2]):
        kind = list[Any]
    element = element_type(kind)
    if element is not None:
        values = []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if len(values) == 1 and (values[0].startswith("[") or values[0] == "null"):
            return values[0]
        return f"[{', '.join(json.dumps(value) if element is str else value for value in values)}]"
    if kind is bool:
        return rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"{where} needs a value" + (f"; expected {type_name(kind)}" if kind else ""))
    return rest.pop(0)
