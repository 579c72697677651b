"""RO-Crates: pulled generations with metadata that research archives understand."""
