"""What runs in other processes: modules that are compiled here and executed there, with the standard library alone."""
