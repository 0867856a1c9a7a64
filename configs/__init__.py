"""Values for Hydra, as YAML; the dataclasses they fill live beside the code that uses them."""
