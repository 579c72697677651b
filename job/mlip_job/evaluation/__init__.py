"""Evaluate a potential after its fit; docs/evaluation.md describes each measurement.

::

    structures ─▶ measure ─▶ statistics, contradictions ─▶ evaluate ─▶ gate
                     ▲                                        ▲
                 potential ─▶ physics, energy_volume ─────────┘

`results` defines the models of the result.
"""
