"""Files to networks and weights, in the layouts of diffusers and Orbax."""
