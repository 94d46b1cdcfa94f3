"""faultpath: replay, time and verify how a driver mirrors a process's address space into a second MMU."""

__version__ = "0.1.0"
