"""Every operation in plain NumPy: the oracle of the tests, and the mathematics in a readable form.

Functions keep the precision of their arguments: float64 in, float64 out.
"""
