"""The numbers of the paper's figures: measurements, and predictions made before them.

`python -m analysis.paper [NAME ...]` writes one CSV file per figure and a JSON file that describes
the columns and how to reproduce it. Figures are drawn from these files alone.
"""
