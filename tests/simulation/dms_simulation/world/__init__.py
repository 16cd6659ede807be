"""A small world for each seed: honest and lying providers, honest and hostile requesters, and all kinds of faults.

`runs.run_world` runs one. `docs/simulation.md` describes its events and its invariants.
"""
