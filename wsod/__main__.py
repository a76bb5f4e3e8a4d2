"""`python -m wsod`."""

from wsod.cli import main

main(prog_name="wsod")
