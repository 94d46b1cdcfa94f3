"""The CPU side as the running kernel has it: what each memory call does to VMAs and page tables, and what it raises.

A module is a file of the kernel. Held to Linux 6.18 call by call, by random programs that run for real (tests/live).
Replay and check are still on kernel/mm.py, which simplifies; they move here next.
"""
