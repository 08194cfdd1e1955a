"""Experiments with the program as it is, and their results in `results/`.

May import `train`, `evaluation`, `checkpoint`, `figures`, `metrics`, `training`, `fne_loss`,
`data`, `inputs` and `common`. Nothing imports an experiment.
"""
