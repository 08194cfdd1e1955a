"""The parts of a run: options, objectives, state, schedule, logs, guards, signals and files.

May import `teacher`, `model`, `encoders`, `data`, `inputs`, `fne_loss`, `negative_sampling`,
`memory_bank` and `common`. Must never import `checkpoint`, `figures`, `evaluation` or `train`,
which build on it.
"""
