"""The dataset: rows of an ASE database, validated, split and written for pacemaker."""
