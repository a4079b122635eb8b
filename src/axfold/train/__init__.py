"""Training: what is compared with a known structure, and how."""
