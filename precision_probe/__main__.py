"""The command line's beginning, also of ``python -m precision_probe``: interruptions are handled before any import."""

from precision_probe.interruption import INTERRUPTIONS

__all__ = ["main"]


def main() -> None:
    """Run the command line; the exit code says how it went."""
    INTERRUPTIONS.take_over()
    from precision_probe.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
