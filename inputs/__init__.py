"""What becomes a batch: photos, captions, the loader, the embedded `shapes` dataset.

May import `common`. Knows no split, model or loss; `data` builds on it.
"""
