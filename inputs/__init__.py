"""What becomes a batch: photos, captions, the loader, the embedded `shapes` dataset.

May import `common`. Knows no split, model or loss. Must never import `data`, which builds on it.
"""
