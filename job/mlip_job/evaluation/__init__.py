"""How good a potential is: errors of the published artefact, physics checks, extrapolation."""
