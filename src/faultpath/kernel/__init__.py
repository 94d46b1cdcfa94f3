"""The modelled kernel: primitives, the mmu notifier core, hmm_range_fault and the CPU side, in the protocol language."""
