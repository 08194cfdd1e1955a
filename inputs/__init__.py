"""What becomes a batch: captions files, photos, tar shards, arrays of all pairs, the loader,
`shapes`.

May import `common`. Knows no model or loss. Must never import `data`, which builds on it.
"""
