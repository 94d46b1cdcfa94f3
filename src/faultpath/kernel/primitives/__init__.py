"""Atomic steps of the modelled kernel: functions ``fn(w, ...)`` over the words of the world.

Each changes the world at one instant. A primitive that has to wait returns 1 and has changed nothing.
"""
