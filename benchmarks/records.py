"""What the benchmarks' results share: how they are kept as JSON, where they go, and which sources made them."""

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import precision_probe
from precision_probe.exceptions import InputError

__all__ = ["Record", "check_folder", "concluded", "plain", "source_sha256", "teller", "without_paths", "write_results"]

Record = dict[str, Any]


def plain(value: Any) -> Any:
    """The same as JSON has it: six digits, and null for what is not finite (counts say how often)."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def check_folder(path: Path, option: str = "--output") -> None:
    """Refuse what cannot be a folder for results, before the work whose results go there; nothing is made yet.

    Raises:
        InputError: If it or a folder above it is a file, or may not be written to.
    """
    try:
        nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    except OSError as error:
        raise InputError(f"{option} {path} cannot be used as a folder: {error.strerror}.") from error
    if not nearest.is_dir():
        raise InputError(f"{option} {path} cannot be used as a folder: {nearest} is a file.")
    if not os.access(nearest, os.W_OK):
        raise InputError(f"{option} {path} cannot be used as a folder: {nearest} may not be written to.")


def teller(quiet: bool) -> Callable[[str], None]:
    """What says how far a benchmark is, or nothing if it is to be quiet."""

    def say(message: str) -> None:
        if not quiet:
            print(message, file=sys.stderr)

    return say


def write_results(folder: Path, stem: str, record: Record, text: str) -> list[Path]:
    """Write a record and its tables into a folder, which is made if it is not there; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.json", folder / f"{stem}.md"]
    paths[0].write_text(json.dumps(plain(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(text, encoding="utf-8")
    return paths


def concluded(
    name: str,
    argv: Sequence[str] | None,
    arguments: Callable[[Sequence[str]], argparse.Namespace],
    check: Callable[[argparse.Namespace], None],
    run: Callable[[argparse.Namespace, Sequence[str]], Sequence[Path]],
) -> int:
    """Do the work of a benchmark and print its tables; 0 if it is done, 2 if what was asked for cannot be.

    Args:
        name: Of the benchmark.
        argv: Its command line; by default the process's.
        arguments: Parses that; with ``quiet`` the paths alone are printed.
        check: Refuses what can be known to be wrong at once.
        run: Writes the results, and returns the paths of their files: the record, the tables, and others.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = arguments(argv)
    try:
        check(args)
        written = run(args, argv)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if not args.quiet:
        print(written[1].read_text(encoding="utf-8"))
    print("\n".join(map(str, written)))
    return 0


def without_paths(argv: Sequence[str]) -> list[str]:
    """A command line without folders of the machine, which say nothing of what was measured; models by name alone."""
    kept, folders = [], ("--folder", "--out", "--output", "-o")
    for before, word in zip(("", *argv), argv, strict=False):
        if before not in folders and word.partition("=")[0] not in folders:
            kept.append(Path(word).name if word.endswith((".model", ".json", ".safetensors")) else word)
    return kept


def source_sha256() -> str:
    """SHA-256 of the package's and the benchmarks' sources, for where there is no git repository."""
    digest = hashlib.sha256()
    for folder in (Path(precision_probe.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
