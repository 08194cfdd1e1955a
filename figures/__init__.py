"""Everything that people look at: TensorBoard, plots, galleries of photos, the report.

May import `teacher`, `training`, `metrics`, `data`, `inputs`, `fne_loss`, `negative_sampling`,
`memory_bank` and `common`. Must never import `model`, `checkpoint` or `evaluation`: a figure shows
what its caller passes, and changes nothing.
"""
