"""Where numbers are computed, and in what: one choice of device for every command, one name for each precision."""
