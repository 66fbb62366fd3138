"""Disks that are full, broken or gone, and processes that are killed, at the n-th call of the operating system."""

import errno
import os


class FullError(OSError):
    """No space left on the device."""


class Killed(BaseException):
    """The process is no more: nobody may go on after this, but the test."""


WRITING = ("pwrite", "ftruncate", "fsync", "unlink", "replace", "rename", "link")


def failing_at(monkeypatch, owner, name, number):
    """Let the n-th call of a function raise, once; returns how often it was called."""
    works, counted = getattr(owner, name), []

    def sometimes(*args, **kwargs):
        counted.append(name)
        if len(counted) == number:
            raise FullError("No space left on device")
        return works(*args, **kwargs)

    monkeypatch.setattr(owner, name, sometimes)
    return counted


def broken_disk(monkeypatch, number, code=errno.ENOSPC, *, for_ever=True, names=WRITING):
    """Let the n-th of all calls that change a disk fail, and those after it; returns the names of those made.

    With ``number=None``, nothing fails.
    """
    made = []

    def failing(name, works):
        def call(*args, **kwargs):
            made.append(name)
            if number is not None and (len(made) >= number if for_ever else len(made) == number):
                raise OSError(code, os.strerror(code))
            return works(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return made


def killed_at(monkeypatch, number, *, half_done=False, names=WRITING):
    """Let nothing reach the disk from the n-th call on: of that itself, if it writes and ``half_done``, a half."""
    made = []

    def failing(name, works):
        def call(*args, **kwargs):
            made.append(name)
            if len(made) == number and half_done and name == "pwrite":
                fd, data, *place = args
                works(fd, data[: len(data) // 2], *place)
            if len(made) >= number:
                raise Killed
            return works(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(os, name, failing(name, getattr(os, name)))
    return made
