"""What becomes a batch: sources of pairs, photos, captions, the loader, `shapes`.

May import `common`. Knows no model or loss. Must never import `data`, which builds on it.
"""
