"""What a process did to its address space: one table, its readers and the recorder. Stands alone."""
