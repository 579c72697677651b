"""Pacemaker: its input, its process, its log and its tables."""
