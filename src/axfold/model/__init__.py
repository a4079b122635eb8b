"""The network, in the supplement's order and with its algorithm numbers."""
