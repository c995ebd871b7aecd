"""Everything before the weights: split, optimize, synthesize, label and curate."""
