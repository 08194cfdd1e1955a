"""The parts of a run: its options, state, schedule, measurements, guards, signals and files.

May import `model`, `data`, `inputs`, `fne_loss`, `memory_bank` and `common`. Must never import
`checkpoint`, `figures`, `evaluation` or `train`, which build on it.
"""
