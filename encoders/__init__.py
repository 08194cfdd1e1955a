"""Hugging Face encoders, tokenizers and pixel statistics, by name, from a checkpoint or a folder.

May import `inputs` and `common`. Must never import `model`, which joins two of them.
"""
