"""What tests share: slow oracles, small runs, faults. Imported from here, never from a test."""
