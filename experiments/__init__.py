"""Experiments with the program as it is, and their results in `results/`.

May import `train`, `evaluation`, `checkpoint`, `figures`, `metrics`, `training`, `teacher`,
`model`, `fne_loss`, `negative_sampling`, `data`, `inputs` and `common`. Nothing imports an
experiment.
"""
