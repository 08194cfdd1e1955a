"""What every command shares: flags, errors, terminal lines, the device.

Imports nothing else of this repository, and everything else may import it.
"""
