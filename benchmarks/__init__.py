"""Side-by-side measurements of amidmath and of what people use today; run by ``make bench``."""
