"""Attention controls, one file each: how an edit takes its structure from the source."""
