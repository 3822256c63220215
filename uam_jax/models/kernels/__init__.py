"""Machine tricks, each behind one line of use: the same results, in less time or memory."""
