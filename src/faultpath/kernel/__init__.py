"""The modelled kernel: primitives, notifier core, hmm_range_fault and the CPU side, in the protocol language."""
