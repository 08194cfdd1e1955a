"""Commands beside training and testing, run as `python -m scripts.check_data`.

May import `teacher`, `figures`, `metrics`, `data`, `inputs` and `common`. Nothing imports a script.
"""
