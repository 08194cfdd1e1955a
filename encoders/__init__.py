"""Hugging Face encoders, tokenizers and pixel statistics by name.

May import `inputs` and `common`. Must never import `model`, which puts two towers together.
"""
