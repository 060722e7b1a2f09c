"""`python -m cli` is the `planner` command."""

from .main import main

main()
