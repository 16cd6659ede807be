"""The files that people write: configuration, terms, access rules, limits, ensembles."""
