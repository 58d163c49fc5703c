"""`python -m batchnorm` is the `batchnorm` command."""

from batchnorm.cli import main

main()
