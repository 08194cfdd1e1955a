"""What people look at: TensorBoard, plots, sheets of photos, the report.

May import `training`, `metrics`, `data`, `inputs`, `fne_loss`, `negative_sampling`, `memory_bank`
and `common`. Must never import `model`, `checkpoint` or `evaluation`: whatever is shown is given to
it.
"""
