"""What every command shares: flags, errors, terminal lines, the device, several processes.

Imports nothing else of this repository, and everything else may import it.
"""
