"""``python -m faultpath``."""

from faultpath.cli import main

main()
