"""What a run can be told: how settings are written, which keys there are, what each may be."""
