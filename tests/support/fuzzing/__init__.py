"""A fuzzer of everything that is read: one file is mutated, its hash kept true, a command run in a forked process.

``bases`` makes the bundle and the user's files, ``mutations`` changes one of them, ``cases`` says which and what is run
on it, ``lanes`` runs the cases, and ``outcome`` judges how they ended.
"""
