"""What is found out about a potential after its fit: docs/evaluation.md says what and how.

::

    structures ─▶ measured ─▶ processes ─▶ errors, tally ─▶ agreement, comparison ─▶ gate
                      ▲                        │
                  potential ─────────▶ physics: dimers, energy_volume, dynamics

`evaluate` puts it all together; `results` are the models of what comes out.
"""
