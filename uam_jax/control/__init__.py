"""Attention controls: pure functions that give the U-Net's layers another attention rule."""
