"""`python -m atcon`."""

from atcon.cli import main

main(prog_name="atcon")
