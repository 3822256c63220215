"""The machine: kinds of devices, precision, the compilation cache, and the computer's memory."""
