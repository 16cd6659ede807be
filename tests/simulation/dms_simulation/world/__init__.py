"""A small world for each seed: honest and lying providers, honest and hostile requesters, and all that goes wrong.

`runs.run_world` plays one; `docs/simulation.md` says what happens in it and what has to hold.
"""
