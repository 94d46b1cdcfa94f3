"""The state of a modelled machine and the schedulers that run a program over it."""
