"""Pages and tables about generations that people read: pure functions of their reports."""
