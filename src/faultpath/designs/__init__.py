"""Designs: how a driver places its notifiers. One file each; users bring their own (see :mod:`faultpath.design`)."""
