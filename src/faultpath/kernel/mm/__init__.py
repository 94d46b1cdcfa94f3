"""The CPU side: what a process's memory calls do to its VMAs and page table, what others do, and what each raises.

A module is a file of the kernel. Held to Linux 6.18 call by call, by random programs that run for real (tests/live,
docs/cpu-side.md). Each ``mm_`` protocol can run as a thread beside others; ``recorded`` is how a replay
calls them.
"""
