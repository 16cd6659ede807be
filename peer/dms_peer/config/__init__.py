"""Files that people write: terms, access rules, limits, ensembles."""
