# Machinery: keep, and skip at first.
"""Options from dataclass fields: flags, JSON, checks, one-line errors, suggestions."""
