"""Every contract with a language model, as DSPy signatures."""
