"""``report.json`` of a generation, and the pages and tables made from it: pure functions of it."""
