"""How figures are drawn from their data: plain matplotlib and NumPy, to copy and to restyle.

``paper.py`` has the look, and ``picture.py`` a figure before it is drawn. Each other module has ``draw(data, spec)``;
``report`` writes it and the look beside each figure.
"""
