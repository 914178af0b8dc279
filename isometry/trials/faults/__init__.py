"""Faults on purpose: kills, crashes, losses of power, damaged files, interrupts, unusual modes; and what comes of them."""
