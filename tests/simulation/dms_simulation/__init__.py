"""Networks and machines in memory and in virtual time, shared by tests and programs.

pytest finds this package by the `pythonpath` of pyproject.toml. A program that is run by its path adds the folder
itself: `sys.path.insert(0, str(Path(__file__).resolve().parents[1]))`, counted from its own place.
"""
