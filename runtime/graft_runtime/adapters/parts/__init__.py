"""Parts: what some tensors of an adapter do to one module of the base. Methods are made of them."""
