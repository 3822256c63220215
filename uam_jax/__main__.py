"""`python -m uam_jax` is `uam`."""

from uam_jax.cli.main import main

main()
