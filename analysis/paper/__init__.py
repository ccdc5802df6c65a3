"""The numbers of the paper's figures: measurements beside predictions that are made before them.

`python -m analysis.paper [NAME ...]` writes one CSV per figure, with a JSON file beside it that
says what every column means and how to make it again; figures are drawn from these files alone.
"""
