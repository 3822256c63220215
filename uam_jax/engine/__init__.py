"""Runs the method on devices: compiled programs, noise predictors, inversions that are kept, checked arguments."""
