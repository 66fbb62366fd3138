"""``python -m precision_probe``."""

from precision_probe.cli import main

main()
