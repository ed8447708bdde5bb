"""Other machines over SSH: addresses, one connection to each, files by hash, commands that outlive a cut."""
