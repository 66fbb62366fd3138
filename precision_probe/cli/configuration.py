"""Options that a TOML file sets: one that is named, or pyproject.toml in the current folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from precision_probe.cli.common import say
from precision_probe.cli.logs import LogLevel
from precision_probe.exceptions import InputError

__all__ = ["ConfigOption", "configured", "use_configuration"]

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file of options, a table for each verb: [audit], [errors], …, and log-level above them. Default: "
        "[tool.precision-probe] of pyproject.toml in the current folder. What the command line says wins."
    ),
]

_PROJECT = Path("pyproject.toml")
_LOG_LEVEL = "log-level"  # of all verbs
# What would overwrite files, or send pickles to a machine, because of a file that happens to be in a folder.
_EACH_TIME = ("force", "scheduler")


@dataclass(frozen=True)
class _Configuration:
    """What a file sets.

    Attributes:
        file: The file.
        verbs: For each verb its options, as they are spelled on the command line without the dashes.
    """

    file: Path
    verbs: Mapping[str, Mapping[str, object]]


def use_configuration(context: typer.Context, given: Path | None) -> LogLevel | None:
    """Have the options in a file be the defaults of every verb.

    Args:
        context: Of the command line, before a verb is parsed.
        given: The file that was named, if one was.

    Returns:
        The level of the log that it sets, if it does.

    Raises:
        InputError: If it cannot be read, or sets what no verb takes.
    """
    file = _PROJECT if given is None else given
    if given is None and not file.is_file():
        return None
    document = _read(file)
    if given is None:
        document = _table(_table(document.get("tool", {}), file).get("precision-probe", {}), file)
    level = _log_level(document.pop(_LOG_LEVEL, None), file)
    commands: Mapping[str, Any] = getattr(context.command, "commands")  # noqa: B009  # of a group
    defaults: dict[str, dict[str, object]] = {}
    for verb, table in document.items():
        if verb not in commands:
            raise InputError(f"{file} sets options of {verb!r}, which is no verb. There are: {', '.join(commands)}.")
        defaults[verb] = _defaults(verb, _table(table, file), commands[verb].params, file)
    context.default_map = defaults
    context.obj = _Configuration(file, document) if document else None
    return level


def configured(context: typer.Context, *, quiet: bool) -> dict[str, object] | None:
    """What a file sets for the verb that runs, which is said, and repeated in what it writes; ``None`` if nothing."""
    found = context.obj
    options = found.verbs.get(context.info_name or "") if isinstance(found, _Configuration) else None
    if not options:
        return None
    say(quiet, f"Options from {found.file}: {', '.join(options)}")
    return {"file": str(found.file), "options": dict(options)}


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"The configuration {file} cannot be read ({error.strerror}).") from error
    except ValueError as error:  # bytes that are no text, or text that is no TOML
        raise InputError(f"{file} is not TOML: {error}.") from error


def _table(value: object, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file} has {value!r} where a table of options belongs, such as [audit].")
    return value


def _log_level(value: object, file: Path) -> LogLevel | None:
    if value is None:
        return None
    if isinstance(value, str) and value in list(LogLevel):
        return LogLevel(value)
    raise InputError(f"{file} sets {_LOG_LEVEL!r} to {value!r}. It may be: {', '.join(LogLevel)}.")


def _defaults(verb: str, table: Mapping[str, object], parameters: list[Any], file: Path) -> dict[str, object]:
    """The options of one verb, by the names that their values are passed under."""
    options = {
        name.removeprefix("--"): parameter
        for parameter in parameters
        if parameter.param_type_name == "option"
        for name in parameter.opts
        if name.startswith("--")
    }
    found = {}
    for name, value in table.items():
        if name not in options or name in _EACH_TIME:
            why = "is to be said on the command line each time" if name in _EACH_TIME else "is no option of it"
            known = ", ".join(sorted(options.keys() - set(_EACH_TIME)))
            raise InputError(f"{file} sets {name!r} of {verb}, which {why}. A file may set: {known}.")
        items = value if isinstance(value, list) and options[name].multiple else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise InputError(f"{file} sets {name!r} of {verb} to {value!r}. Write it as on the command line, as text.")
        found[options[name].name] = value if not isinstance(value, str) or not options[name].multiple else [value]
    return found
