"""Commands beside training and testing, run as `python -m scripts.check_data`.

May import `data`, `inputs`, `metrics` and `common`. Nothing imports a script.
"""
