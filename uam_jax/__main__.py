"""`python -m uam_jax` is `uam`."""

from uam_jax.cli import main

main()
