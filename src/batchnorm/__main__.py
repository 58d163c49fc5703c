"""`python -m batchnorm` is the `batchnorm` command."""

from batchnorm_command import main

main()
