"""Search: a folder's photos by sentence or photo, captions by photo, and the page of what is found.

May import `evaluation`, `checkpoint`, `figures`, `metrics`, `training`, `model`, `encoders`,
`data`, `inputs`, `fne_loss` and `common`. Must never import `train` or `export`: it is given a
model, and changes none.
"""
