"""What becomes a batch: captions files, photos, the loader, the embedded `shapes` dataset.

May import `common`. Knows no model or loss. Must never import `data`, which builds on it.
"""
