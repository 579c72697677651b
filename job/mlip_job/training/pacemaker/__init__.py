"""Fits by pacemaker: ACE potentials in the B-basis."""
