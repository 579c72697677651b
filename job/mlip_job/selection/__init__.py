"""Candidates for the next generation: graded, chosen, written, marked in their database."""
