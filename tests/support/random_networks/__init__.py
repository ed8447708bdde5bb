"""Random small networks, composed of the operators of the operator table, as the text of a Python module each.

``network`` is a network as statements, its source and its smaller versions; ``operators`` are what it is composed of;
``compose`` draws one from a seed; ``trial`` exports it and holds every file against torch; ``shrink`` makes a network
that fails smaller. ``python -m random_networks`` runs them by hand.
"""
