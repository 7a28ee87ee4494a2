"""Other frameworks as hosts: one file each, imported when asked for."""
