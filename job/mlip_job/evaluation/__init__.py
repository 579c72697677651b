"""The evaluation of a potential after its fit; docs/evaluation.md says what is measured and how.

::

    structures ─▶ measure ─▶ statistics, contradictions ─▶ evaluate ─▶ gate
                     ▲                                        ▲
                 potential ─▶ physics, energy_volume ─────────┘

`results` are the models of what comes out.
"""
