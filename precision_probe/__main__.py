"""``python -m precision_probe``."""

from precision_probe.cli.main import main

main()
