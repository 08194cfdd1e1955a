"""Search: photos by sentence or photo, captions by photo, and the page of results.

May import `evaluation`, `checkpoint`, `figures`, `metrics`, `training`, `model`, `encoders`,
`data`, `inputs`, `fne_loss` and `common`. Must never import `train` or `export`: a search
gets its model from its caller, and does not change it.
"""
