"""DDIM inversion.

Source: Song et al., DDIM, ICLR 2021 (arXiv 2010.02502), §4.3.
"""

from dataclasses import dataclass

from uam_jax.method.inversions.method import InversionMethod


@dataclass(frozen=True)
class DDIM(InversionMethod):
    """Each step takes the noise that is predicted at the latent that it leaves."""
