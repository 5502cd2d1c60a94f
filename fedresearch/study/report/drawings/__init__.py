"""How a report's figures are drawn from their data: plain matplotlib and NumPy, to copy and to restyle.

``paper.py`` has the look. Each other module has ``draw(data, spec)``; ``report`` writes both beside each figure.
"""
