"""The command `mgenb`."""
