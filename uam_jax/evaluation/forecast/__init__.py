"""Memory, speed and cost of edits on a machine that isn't here: by a TPU's compiler, or for a GPU by a roofline."""
