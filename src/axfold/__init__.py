"""axfold: predicts and trains protein structures with the AlphaFold 2 network."""

__version__ = "0.1.0"
