"""Part of limbeck."""
