"""Edits of files: one picture, or a data set with its manifest, batches, ledger and report."""
