"""A teacher: a frozen witness of which captions mean the same, and P(match) by what it says.

`captions.py` embeds the captions of a split, by a sentence encoder or by the captions alone, and
`posterior.py` turns similarities of captions into P(match) of a photo and a caption.

May import `encoders`, `inputs`, `fne_loss` and `common`. Must never import what trains or scores.
"""
