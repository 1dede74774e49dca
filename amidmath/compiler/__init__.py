"""From a closed form to a row program: traced, simplified, scheduled."""
