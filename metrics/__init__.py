"""Metrics of embeddings: ranks and recalls, all true matches, and people's judgements.

May import `teacher`, `data`, `fne_loss`, `negative_sampling` and `common`. Must never import a
model or the training: whatever is measured here is an array that any program could have written.
"""
