"""python -m axfold."""

from axfold.cli import main

main()
