"""``python -m fastinfluence`` is the command line."""

from fastinfluence.cli import main

main(prog_name="fastinfluence")
