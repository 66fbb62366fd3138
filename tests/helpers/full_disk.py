"""A disk that is full at one call of a function, and not at the next."""


class FullError(OSError):
    """No space left on the device."""


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
