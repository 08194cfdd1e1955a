"""What people look at: TensorBoard, plots, sheets of photos, the report.

May import `training`, `metrics`, `data`, `inputs`, `fne_loss`, `memory_bank` and `common`. Must
never import `model`, `checkpoint` or `evaluation`: a figure shows what it is given, and changes
nothing.
"""
