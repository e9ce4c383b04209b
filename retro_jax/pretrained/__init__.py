"""Other people's pretrained decoders: reading them as parameters, and writing them back."""
