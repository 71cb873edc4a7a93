"""What trained models are used for, one module a use; `Transformer` has a method for each."""
